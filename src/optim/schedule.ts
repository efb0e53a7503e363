/** The learning-rate schedules of diffusers' `get_scheduler`, as factors of the base rate. */
export const schedules = {
  constant: () => 1,
  linear: (progress: number) => Math.max(0, 1 - progress),
  cosine: (progress: number) => Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress))),
} satisfies Record<string, (progress: number) => number>;

export type ScheduleName = keyof typeof schedules;

export interface ScheduleOptions {
  readonly schedule: ScheduleName;
  /** Steps over which the rate grows linearly from 0. */
  readonly warmupSteps: number;
  readonly totalSteps: number;
}

/** The factor on the base learning rate at a step counted from 1. */
export function scheduleFactor(step: number, { schedule, warmupSteps, totalSteps }: ScheduleOptions): number {
  const done = step - 1;
  if (done < warmupSteps) return done / Math.max(1, warmupSteps);
  return schedules[schedule]((done - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
}
