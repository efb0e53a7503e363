/** What a run tells while it goes on. The terminal, the log files and a web page are all listeners on this one stream. */
export type TrainingEvent =
  | StartedEvent
  | ProgressEvent
  | StageEvent
  | DownloadEvent
  | WarningEvent
  | CheckpointEvent
  | SamplesEvent
  | ValidationEvent
  | StoppedEvent
  | FinishedEvent;

/** The run is set up and the first step is about to be taken. */
export interface StartedEvent {
  readonly kind: 'started';
  readonly folder: string;
  /** The name of the method: "dpg", "dreambooth". */
  readonly method: string;
  /** Steps done already by the run that is resumed; 0 for a new one. */
  readonly fromStep: number;
  readonly steps: number;
  readonly images: number;
  readonly trainableParameters: number;
}

/** One policy step is done. */
export interface ProgressEvent {
  readonly kind: 'progress';
  /** Steps done, counted from 1. */
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  /** The reward of the pictures that the policy is heading for, if the method has one. */
  readonly reward?: number;
  /** The critic's own loss, if the method has a critic. */
  readonly critic?: number;
  readonly learningRate: number;
  /** A running mean. */
  readonly secondsPerStep: number;
  readonly secondsLeft: number;
}

/** A countable part around the training itself: class images, latents, sample pictures. `done` equals `total` when it ends. */
export interface StageEvent {
  readonly kind: 'stage';
  /** As it is shown: "drawing class images". */
  readonly name: string;
  readonly done: number;
  readonly total: number;
  /** Where it was measured. */
  readonly secondsLeft?: number;
}

/** Some of a model has come from the hub. */
export interface DownloadEvent {
  readonly kind: 'download';
  /** "organisation/name" */
  readonly model: string;
  readonly bytes: number;
  /** Of all files that are needed, with those that were here before. */
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  /** Undefined while there is nothing to estimate it from. */
  readonly secondsLeft: number | undefined;
}

export interface WarningEvent {
  readonly kind: 'warning';
  readonly message: string;
}

/** A checkpoint is on the disk, whole. */
export interface CheckpointEvent {
  readonly kind: 'checkpoint';
  readonly step: number;
  readonly path: string;
}

/** A grid of sample pictures was written. */
export interface SamplesEvent {
  readonly kind: 'samples';
  readonly step: number;
  readonly path: string;
}

/** The pictures of a step were measured: the judges' scores, and how far the run is from the base, by the names that they have in the metrics. */
export interface ValidationEvent {
  readonly kind: 'validation';
  readonly step: number;
  readonly scores: Readonly<Record<string, number>>;
}

/** The user asked to stop; the state is saved and the run can be gone on with. */
export interface StoppedEvent {
  readonly kind: 'stopped';
  readonly folder: string;
  readonly step: number;
  readonly steps: number;
}

/** The run is over, its steps done or stopped early, and all files are written. */
export interface FinishedEvent {
  readonly kind: 'finished';
  readonly folder: string;
  readonly steps: number;
  readonly seconds: number;
  /** Paths of what is meant for the user: the LoRA files and the report. */
  readonly files: readonly string[];
}

export type TrainingListener = (event: TrainingEvent) => void;
