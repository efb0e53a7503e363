import { RewardError } from '../errors.js';
import type { BlackBoxReward, Picture, ScoringContext } from './reward.js';

/**
 * Asks a black box for the rewards of some pictures and checks what it answers: a finite number for each picture, in their order.
 *
 * @throws RewardError naming the reward, when it fails, takes too long, or answers something else
 */
export async function score(
  reward: BlackBoxReward,
  pictures: readonly Picture[],
  context: Omit<ScoringContext, 'signal'>,
): Promise<Float32Array> {
  const { name, timeout } = reward;
  const late = new AbortController();
  const timer = timeout === undefined ? undefined : setTimeout(() => late.abort(), timeout * 1000);
  try {
    const answer = await Promise.race([
      new Promise<never>((_, reject) => {
        late.signal.addEventListener('abort', () =>
          reject(
            new RewardError(
              `The reward ${name} gave no answer for ${pictures.length} pictures within ${timeout} s. Make it faster, or give it longer with --reward-timeout.`,
            ),
          ),
        );
      }),
      ask(reward, pictures, { ...context, signal: late.signal }),
    ]);
    return checked(name, answer, pictures.length);
  } finally {
    clearTimeout(timer);
  }
}

async function ask(
  reward: BlackBoxReward,
  pictures: readonly Picture[],
  context: ScoringContext,
): Promise<unknown> {
  try {
    return await reward.score(pictures, context);
  } catch (error) {
    if (error instanceof RewardError || context.signal.aborted) throw error;
    throw new RewardError(
      `The reward ${reward.name} failed: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
}

function checked(name: string, answer: unknown, count: number): Float32Array {
  if (!Array.isArray(answer) && !ArrayBuffer.isView(answer)) {
    throw new RewardError(
      `The reward ${name} answered ${shown(answer)}; expected a list of ${count} numbers, one for each picture.`,
    );
  }
  const values = Array.from(answer as unknown as ArrayLike<unknown>);
  if (values.length !== count) {
    throw new RewardError(
      `The reward ${name} answered ${values.length} numbers for ${count} pictures; expected one for each.`,
    );
  }
  const odd = values.findIndex((v) => typeof v !== 'number' || !Number.isFinite(v));
  if (odd >= 0) {
    throw new RewardError(
      `The reward ${name} answered ${shown(values[odd])} for picture ${odd + 1} of ${count}; expected a finite number.`,
    );
  }
  return Float32Array.from(values as number[]);
}

function shown(value: unknown): string {
  const text = typeof value === 'object' || typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
