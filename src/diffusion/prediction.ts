import type { PredictionType } from './noise-schedule.js';

/** A function of a sample's element and the prediction there. */
export type ElementOfPrediction = (sample: number, prediction: number) => number;

/** The clean sample that a prediction speaks of, at a level sqrt(abar) of signal and sqrt(1 - abar) of noise: look-forward for numbers. */
export function cleanSample(type: PredictionType, signal: number, noise: number): ElementOfPrediction {
  return type === 'v_prediction' ? (x, p) => signal * x - noise * p : (x, p) => (x - noise * p) / signal;
}

/** The noise that a prediction speaks of, at such a level. */
export function noiseInSample(type: PredictionType, signal: number, noise: number): ElementOfPrediction {
  return type === 'v_prediction' ? (x, p) => signal * p + noise * x : (_, p) => p;
}
