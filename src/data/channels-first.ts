/** Writes RGB bytes, [H, W, 3] row by row, into `into` as [3, H, W] in [-1, 1]. */
export function channelsFirst(picture: Uint8Array, into: Float32Array): void {
  const plane = picture.length / 3;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) into[c * plane + i] = picture[3 * i + c]! / 127.5 - 1;
  }
}
