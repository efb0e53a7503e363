/**
 * An error that the user can cause and mend. The message says what was expected, what came, and the remedy; the command line prints it alone, without a
 * stack trace, and ends with `exitCode`. Anything that is not a `PortrayalError` is a bug of ours.
 */
export class PortrayalError extends Error {
  /** The process exit status of the command line for this kind of error. */
  readonly exitCode: number = 1;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A flag, command or API argument that makes no sense. */
export class UsageError extends PortrayalError {
  override readonly exitCode = 2;
}

/** Reference images, prompts or other data of the user that cannot be used. */
export class InputError extends PortrayalError {
  override readonly exitCode = 3;
}

/** A model folder, its configuration or its weights. */
export class ModelError extends PortrayalError {
  override readonly exitCode = 4;
}

/** The engine: out of memory, a device that is not there, a session that could not be built. */
export class EngineError extends PortrayalError {
  override readonly exitCode = 5;
}

/** A run folder or a checkpoint that cannot be used or resumed. */
export class RunError extends PortrayalError {
  override readonly exitCode = 6;
}

/** Training left the finite numbers. */
export class DivergedError extends PortrayalError {
  override readonly exitCode = 7;
}

/** Output that cannot be written: a full disk, no permission, or something of the user's that would be overwritten. */
export class OutputError extends PortrayalError {
  override readonly exitCode = 8;
}

/** Why a model could not be had from the hub. */
export type HubFault =
  /** Its authors want their terms to be accepted first. */
  | 'gated'
  /** The token is wrong, or its owner may not read this. */
  | 'access'
  | 'no-repository'
  | 'no-revision'
  | 'no-file'
  /** Too many requests; `retryAfter` says how long to wait, where the hub does. */
  | 'rate-limit'
  /** The hub failed, or answered what cannot be understood. */
  | 'server'
  /** No connection, or one that broke. */
  | 'network'
  /** The bytes are not those that the hub promised. */
  | 'checksum'
  /** Not on this machine, or only in part, and no connection was wanted. */
  | 'offline';

/** A model that could not be had from the hub. */
export class HubError extends PortrayalError {
  override readonly exitCode = 9;

  /** @param retryAfter seconds after which the hub wants to be asked again */
  constructor(
    readonly fault: HubFault,
    message: string,
    options?: ErrorOptions,
    readonly retryAfter?: number,
  ) {
    super(message, options);
  }
}

/** A reward that could not be had: a function that fails, an endpoint that does not answer, answers that are no rewards. */
export class RewardError extends PortrayalError {
  override readonly exitCode = 10;
}

/** The user asked to stop. */
export class CancelledError extends PortrayalError {
  override readonly exitCode = 130;
}
