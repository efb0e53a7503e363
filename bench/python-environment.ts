import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const PACKAGES = ['torch==2.13.0', 'diffusers', 'transformers', 'peft', 'accelerate', 'safetensors'];
/** Builds without CUDA, a tenth of the size; where it cannot be reached pip takes the package index's. */
const PROCESSOR_BUILDS = 'https://download.pytorch.org/whl/cpu';
const IMPORTS = 'import torch, diffusers, transformers, peft, safetensors';

/** A Python that can run the other side of the benchmark, or why there is none. */
export type PythonEnvironment = { readonly python: string } | { readonly missing: string };

const succeeds = (command: string, args: readonly string[]): boolean =>
  spawnSync(command, args, { stdio: 'ignore' }).status === 0;

/** The Python that PORTRAYAL_PYTHON names; or that of `.venv` in this folder, made and filled first where python3 is there. */
export function findPython(root: string, say: (line: string) => void): PythonEnvironment {
  const named = process.env.PORTRAYAL_PYTHON;
  if (named) {
    return succeeds(named, ['-c', IMPORTS])
      ? { python: named }
      : { missing: `PORTRAYAL_PYTHON (${named}) cannot import ${IMPORTS.slice('import '.length)}` };
  }
  const venv = join(root, '.venv');
  const python = join(
    venv,
    ...(process.platform === 'win32' ? ['Scripts', 'python.exe'] : ['bin', 'python']),
  );
  if (existsSync(python) && succeeds(python, ['-c', IMPORTS])) return { python };
  if (!succeeds('python3', ['--version'])) return { missing: 'there is no python3' };
  say(`installing PyTorch, diffusers and peft into ${venv} …`);
  if (!existsSync(python) && !succeeds('python3', ['-m', 'venv', venv]))
    return { missing: 'python3 cannot make a virtual environment (on Debian: apt install python3-venv)' };
  const install = [
    '-m',
    'pip',
    'install',
    '--quiet',
    '--retries',
    '1',
    '--extra-index-url',
    PROCESSOR_BUILDS,
  ];
  const { status, stderr } = spawnSync(python, [...install, ...PACKAGES], { encoding: 'utf8' });
  return status === 0
    ? { python }
    : { missing: `pip could not install them: ${stderr?.trim().split('\n').at(-1) ?? ''}` };
}
