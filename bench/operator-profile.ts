import { readFileSync } from 'node:fs';

/** Time spent in one kind of operator over a profiled session. */
export interface OperatorTime {
  readonly operator: string;
  readonly calls: number;
  readonly seconds: number;
}

interface ProfileEvent {
  readonly cat: string;
  readonly name: string;
  readonly dur: number;
  readonly args?: {
    readonly op_name?: string;
    readonly input_type_shape?: readonly Readonly<Record<string, readonly number[]>>[];
  };
}

function kernelEvents(profile: string): readonly ProfileEvent[] {
  const events = JSON.parse(readFileSync(profile, 'utf8')) as ProfileEvent[];
  return events.filter((e) => e.cat === 'Node' && e.name.endsWith('_kernel_time'));
}

/** An engine's profile by operator, or by operator and operand shapes; slowest first. */
export function operatorTimes(profile: string, withShapes = false): OperatorTime[] {
  const times = new Map<string, { calls: number; seconds: number }>();
  for (const { args, dur } of kernelEvents(profile)) {
    const shapes = args?.input_type_shape?.map((s) => `[${Object.values(s)[0]?.join(' ')}]`) ?? [];
    const key = withShapes ? `${args?.op_name} ${shapes.join(' ')}` : (args?.op_name ?? '?');
    const known = times.get(key) ?? { calls: 0, seconds: 0 };
    times.set(key, { calls: known.calls + 1, seconds: known.seconds + dur / 1e6 });
  }
  return [...times].map(([operator, t]) => ({ operator, ...t })).sort((a, b) => b.seconds - a.seconds);
}
