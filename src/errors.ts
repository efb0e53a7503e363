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

/** The user asked to stop. */
export class CancelledError extends PortrayalError {
  override readonly exitCode = 130;
}
