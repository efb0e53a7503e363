import { type AutoencoderKLConfig, decodeLatents, encodeLatents } from '../models/autoencoder-kl.js';
import type { Scope } from '../nn/parameters.js';
import { abs, add, exp, mul, square, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { mean } from '../onnx/reduction.js';

/**
 * The variational autoencoder's objective (Kingma and Welling, arXiv 1312.6114, eq. 7) with an absolute-error likelihood and a light pull of the posterior towards the
 * standard normal, as latent diffusion uses it (Rombach et al., arXiv 2112.10752, appendix G). It leaves out their adversarial and perceptual terms: flat
 * drawings do not need them.
 *
 * @param pixels [B, 3, H, W] in [-1, 1]
 * @param noise standard normal, of the latents' shape
 * @param klWeight weight of the mean divergence per latent element
 */
export function autoencodingLoss(
  scope: Scope,
  config: AutoencoderKLConfig,
  pixels: Value,
  noise: Value,
  klWeight: number,
): { loss: Value; reconstruction: Value; divergence: Value } {
  const { mean: mu, logVariance } = encodeLatents(scope, config, pixels);
  const latents = add(mu, mul(exp(mul(logVariance, 0.5)), noise));
  const reconstruction = mean(abs(sub(decodeLatents(scope, config, latents), pixels)));
  const divergence = mul(mean(sub(add(square(mu), exp(logVariance)), add(logVariance, 1))), 0.5);
  return { loss: add(reconstruction, mul(divergence, klWeight)), reconstruction, divergence };
}
