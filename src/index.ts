/**
 * The public API.
 *
 * - {@link personalise} teaches a model one subject and writes a run folder.
 * - {@link generate} draws pictures with a run, or with a plain model, into files.
 * - {@link mergeLoras} bakes LoRAs into a copy of a model; {@link convertLora} and {@link convertModel} turn files from one format into another.
 * - {@link locateModel} finds a model on this machine or downloads it from the Hugging Face hub.
 * - {@link evaluate} scores runs, or pictures from elsewhere, by the rules of a benchmark.
 * - {@link StableDiffusion} opens a model; with an engine, {@link TextToImage} draws from it in memory.
 * - Everything that a caller can mend is thrown as a {@link PortrayalError}; {@link TrainingEvent} is what a listener hears.
 */
export { type SchedulerName, schedulerNames } from './diffusion/scheduler-config.js';
export { type Device, devices } from './engine/device.js';
export type { CompileOptions, Engine, NamedTensors, Program, State } from './engine/engine.js';
export { createNodeEngine, type NodeEngineOptions } from './engine/node.js';
export {
  CancelledError,
  DivergedError,
  EngineError,
  HubError,
  type HubFault,
  InputError,
  ModelError,
  OutputError,
  PortrayalError,
  RewardError,
  RunError,
  UsageError,
} from './errors.js';
export type { Estimate, PairedDifference } from './evaluation/bootstrap.js';
export type { Comparison, MethodScores } from './evaluation/comparison.js';
export type { Metric, Scores } from './evaluation/scores.js';
export { type LocatedModel, type LocateOptions, locateModel } from './pretrained/model-reference.js';
export { StableDiffusion } from './pretrained/stable-diffusion.js';
export {
  type DrawingRequest,
  type DrawnImage,
  type DrawOptions,
  TextToImage,
  type TextToImageOptions,
} from './pretrained/text-to-image.js';
export type { LoraSettings, Trainable } from './pretrained/trainable.js';
export type { ScoreFunction } from './rewards/function-reward.js';
export type { Picture, ScoringContext } from './rewards/reward.js';
export type {
  CheckpointEvent,
  DownloadEvent,
  FinishedEvent,
  ProgressEvent,
  SamplesEvent,
  StageEvent,
  StartedEvent,
  StoppedEvent,
  TrainingEvent,
  TrainingListener,
  ValidationEvent,
  WarningEvent,
} from './training/events.js';
export {
  type ConvertLoraOptions,
  type ConvertModelOptions,
  convertLora,
  convertModel,
  type LoraFormat,
} from './workflows/convert.js';
export { type EvaluateOptions, evaluate } from './workflows/evaluate.js';
export type { MethodInput } from './workflows/evaluation-plan.js';
export type { EvaluateResult } from './workflows/evaluation-results.js';
export { readSubjects, type SubjectInput } from './workflows/evaluation-subjects.js';
export { type GenerateOptions, generate } from './workflows/generate.js';
export type { LoraChoice } from './workflows/lora-choice.js';
export type { MemoryEstimate, MemoryPart, MemoryPhase } from './workflows/memory-estimate.js';
export { type MergeOptions, mergeLoras } from './workflows/merge.js';
export {
  type PersonaliseSettings,
  type PresetName,
  personaliseDefaults,
  presets,
} from './workflows/personalisation-settings.js';
export {
  estimatePersonalisation,
  type PersonaliseOptions,
  type PersonaliseResult,
  personalise,
} from './workflows/personalise.js';
export type { RewardInput, RewardSpec } from './workflows/reward-spec.js';
export { shippedModelPath } from './workflows/shipped.js';
