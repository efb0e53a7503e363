import { UsageError } from '../errors.js';
import type { Config } from '../formats/json-config.js';
import { roundHalfToEven } from '../tensor/rounding.js';

/** How a sampler places its steps (Lin et al., arXiv 2305.08891, table 2). */
export interface TimestepSpacing {
  readonly timestepSpacing: SpacingName;
  /** Added to `leading` timesteps. */
  readonly stepsOffset: number;
}

export type SpacingName = keyof typeof spacings;

/** From noisy to clean. The total is the number of timesteps of the noise schedule. */
const spacings = {
  leading: (total: number, steps: number, offset: number): number[] => {
    const stride = Math.floor(total / steps);
    return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * stride + offset);
  },
  trailing: (total: number, steps: number): number[] => {
    const stride = total / steps;
    return Array.from({ length: steps }, (_, i) => roundHalfToEven(total - i * stride) - 1);
  },
  /** Not rounded. */
  linspace: (total: number, steps: number): number[] => {
    const stride = steps === 1 ? 0 : (total - 1) / (steps - 1);
    return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * stride);
  },
};

/** Reads the keys `timestep_spacing` and `steps_offset`. */
export function readTimestepSpacing(config: Config, fallback: SpacingName): TimestepSpacing {
  return {
    timestepSpacing: config.oneOf('timestep_spacing', ['leading', 'trailing', 'linspace'], fallback),
    stepsOffset: config.integer('steps_offset', 0, 0),
  };
}

/**
 * The timesteps that a sampler of `steps` steps visits, from noisy to clean. Those of `linspace` need not be whole.
 *
 * @param total how many timesteps the noise schedule has
 * @throws UsageError when the schedule has fewer timesteps.
 */
export function spacedTimesteps(total: number, spacing: TimestepSpacing, steps: number): number[] {
  requireSteps(total, steps);
  const timesteps = spacings[spacing.timestepSpacing](total, steps, spacing.stepsOffset);
  requireWithin(total, timesteps, steps, spacing);
  return timesteps;
}

/** The same in whole numbers. */
export function wholeTimesteps(total: number, spacing: TimestepSpacing, steps: number): number[] {
  return spacedTimesteps(total, spacing, steps).map(roundHalfToEven);
}

/** @throws UsageError when a schedule of this many timesteps cannot take that many steps. */
export function requireSteps(total: number, steps: number): void {
  if (!Number.isInteger(steps) || steps < 1 || steps > total) {
    throw new UsageError(
      `A sampler takes 1 to ${total} steps with this model's noise schedule, not ${steps}.`,
    );
  }
}

/** @throws UsageError when the offset leads out of the schedule. */
export function requireWithin(
  total: number,
  timesteps: readonly number[],
  steps: number,
  { stepsOffset }: TimestepSpacing,
): void {
  const outside = timesteps.find((t) => t >= total);
  if (outside === undefined) return;
  throw new UsageError(
    `${steps} steps with "steps_offset": ${stepsOffset} would visit timestep ${outside}, but the noise schedule ends at ${total - 1}. Take fewer steps.`,
  );
}
