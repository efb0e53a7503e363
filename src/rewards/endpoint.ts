import { RewardError } from '../errors.js';
import type { BlackBoxReward, Picture, ScoringContext } from './reward.js';

export interface EndpointOptions {
  readonly url: string;
  /** Pictures in one request. */
  readonly batchSize: number;
  /** How long one request may take, in seconds. */
  readonly timeout: number;
  /** How often a request that failed is sent again. */
  readonly retries: number;
  /** The wait before the first of these, in seconds; it doubles each time. */
  readonly backOff: number;
  /** A picture as a PNG file. */
  readonly encode: (picture: Picture) => Promise<Uint8Array>;
  /** Once it is raised, nothing is sent again. */
  readonly stop?: AbortSignal;
  /** Told of every request that is about to be sent again. */
  readonly onRetry?: (message: string) => void;
}

/** Statuses after which the same request may yet succeed. */
const PASSING = new Set([408, 425, 429]);

/**
 * An HTTP endpoint that is sent pictures and answers numbers. A request is a POST of
 *
 *   {"pictures": [{"width": 512, "height": 512, "png": "<base64>", "prompt": "a backpack on the beach"}], "prompt": "a photo of sks backpack", "step": 12}
 *
 * with what each picture should show beside it, and the answer {"rewards": [0.31]}, a number for each picture in their order. What fails for a while (no connection, no answer in time, status 408, 425, 429
 * or 5xx, an answer that is no such list) is sent again after a wait that doubles; any other status is final.
 */
export function endpointReward(name: string, options: EndpointOptions): BlackBoxReward {
  return {
    kind: 'black box',
    name,
    timeout: undefined,
    async score(pictures, context) {
      const rewards: unknown[] = [];
      for (let start = 0; start < pictures.length; start += options.batchSize) {
        const batch = pictures.slice(start, start + options.batchSize);
        const prompts = context.prompts.slice(start, start + options.batchSize);
        const told = { ...context, prompts };
        rewards.push(...(await persistently(name, options, () => request(options, batch, told))));
      }
      return rewards;
    },
  };
}

/** A reason to send a request again, or, if it is final, to stop. */
class RequestFailure extends Error {
  constructor(
    message: string,
    readonly final = false,
  ) {
    super(message);
  }
}

async function persistently<T>(
  name: string,
  { url, retries, backOff, stop, onRetry }: EndpointOptions,
  attempt: () => Promise<T>,
): Promise<T> {
  for (let failures = 0; ; failures++) {
    try {
      return await attempt();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (failures >= retries || stop?.aborted || (error instanceof RequestFailure && error.final)) {
        throw new RewardError(
          `The reward ${name} could not be had from ${url}: ${reason}${failures > 0 ? ` (after ${failures + 1} attempts)` : ''}. Check that the endpoint is up and answers as docs/rewards/endpoint.md says.`,
          { cause: error },
        );
      }
      const seconds = backOff * 2 ** failures;
      onRetry?.(
        `The reward ${name}: ${reason}; trying again in ${seconds} s (${failures + 1} of ${retries}).`,
      );
      await pause(seconds, stop);
    }
  }
}

async function request(
  { url, timeout, encode }: EndpointOptions,
  pictures: readonly Picture[],
  { prompt, prompts, step }: ScoringContext,
): Promise<readonly unknown[]> {
  const encoded = await Promise.all(
    pictures.map(async (picture, i) => ({
      width: picture.width,
      height: picture.height,
      png: base64(await encode(picture)),
      prompt: prompts[i],
    })),
  );
  const late = AbortSignal.timeout(timeout * 1000);
  let response: Response;
  let text: string;
  try {
    response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'application/json' },
      body: JSON.stringify({ pictures: encoded, prompt, step }),
      signal: late,
    });
    text = await response.text();
  } catch (error) {
    if (late.aborted) throw new RequestFailure(`no answer within ${timeout} s`);
    throw new RequestFailure(`no connection (${causeOf(error)})`);
  }
  if (!response.ok) {
    const said = text.trim() === '' ? '' : `: ${shortened(text.trim())}`;
    const passing = response.status >= 500 || PASSING.has(response.status);
    throw new RequestFailure(`status ${response.status}${said}`, !passing);
  }
  return rewardsIn(text, pictures.length);
}

function rewardsIn(text: string, count: number): readonly unknown[] {
  let answer: unknown;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new RequestFailure(`the answer is not JSON: ${shortened(text)}`);
  }
  const rewards =
    typeof answer === 'object' && answer !== null && 'rewards' in answer ? answer.rewards : answer;
  if (!Array.isArray(rewards) || rewards.length !== count || !rewards.every(isFiniteNumber)) {
    throw new RequestFailure(
      `expected {"rewards": [${count} numbers]}, but the answer is ${shortened(text)}`,
    );
  }
  return rewards;
}

const isFiniteNumber = (value: unknown): boolean => typeof value === 'number' && Number.isFinite(value);

const shortened = (text: string): string => (text.length > 120 ? `${text.slice(0, 117)}...` : text);

/** fetch hides the reason of a lost connection behind "fetch failed". */
function causeOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  if (cause instanceof Error) return cause.message || ('code' in cause ? String(cause.code) : error.message);
  return error.message;
}

/** Waits, but not once the run is to stop. */
function pause(seconds: number, stop: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      stop?.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, seconds * 1000);
    stop?.addEventListener('abort', end);
  });
}

function base64(bytes: Uint8Array): string {
  let binary = '';
  for (let i = 0; i < bytes.length; i += 8192) binary += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(binary);
}
