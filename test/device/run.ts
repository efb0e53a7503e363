// Compares a device with the processor, where there is one. Run: npm run test:webgpu, where there is a graphics driver: a real one, or one in software; npm run test:cuda,
// where there is an NVIDIA card. A driver has to be named in the environment before a process starts, so each way of finding one is tried in a process of its own.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

interface Driver {
  readonly name: string;
  readonly variables: Readonly<Record<string, string>>;
}

const here = (file: string): string => fileURLToPath(new URL(file, import.meta.url));

const lavapipe = (file: string): Driver => ({
  name: 'lavapipe of mesa-vulkan-drivers',
  variables: { VK_ICD_FILENAMES: `/usr/share/vulkan/icd.d/${file}` },
});

/**
 * Where Debian's packages have drivers in software: Mesa's lavapipe (from Mesa 25 on), which has 16-bit floats, and the SwiftShader of Chromium, which has not and brings
 * its own Vulkan loader.
 */
const inSoftware: readonly Driver[] = [
  lavapipe('lvp_icd.json'),
  lavapipe('lvp_icd.x86_64.json'),
  {
    name: 'SwiftShader of chromium',
    variables: {
      VK_ICD_FILENAMES: '/usr/lib/chromium/vk_swiftshader_icd.json',
      LD_LIBRARY_PATH: '/usr/lib/chromium',
    },
  },
];
const ofThisMachine: Driver = { name: 'driver of this machine', variables: {} };

const waysTo: Readonly<
  Record<string, { readonly drivers: () => readonly Driver[]; readonly remedy: string }>
> = {
  webgpu: {
    drivers: () => [
      ofThisMachine,
      ...inSoftware.filter(({ variables }) => existsSync(variables.VK_ICD_FILENAMES!)),
    ],
    remedy:
      'On Debian, "apt-get install mesa-vulkan-drivers" brings one in software, of Mesa 25 or newer (for Debian 12 from bookworm-backports); chromium brings one too, without 16-bit floats.',
  },
  cuda: {
    // Without it products of 32-bit floats have factors of 19 bits.
    drivers: () => [{ ...ofThisMachine, variables: { NVIDIA_TF32_OVERRIDE: '0' } }],
    remedy: 'README.md says what CUDA needs.',
  },
};

const device = process.argv[2] ?? '';
const way = waysTo[device];
if (!way) throw new Error(`expected one of ${Object.keys(waysTo).join(', ')}, got "${device}"`);

const environment = ({ variables }: Driver) => ({ ...process.env, ...variables });

const reasons: string[] = [];
const found = way.drivers().find((driver) => {
  const { status, stderr, signal } = spawnSync(process.execPath, [here('./probe.js'), device], {
    env: environment(driver),
    encoding: 'utf8',
  });
  if (status !== 0)
    reasons.push(`  ${driver.name}: ${stderr.trim().split('\n').at(-1) || `ended by ${signal}`}`);
  return status === 0;
});

if (found === undefined) {
  process.stdout.write(
    `skipped: ${device} finds no driver here.\n${reasons.join('\n')}\n${way.remedy}\n0 passed, 0 failed, 1 skipped\n`,
  );
} else {
  process.stdout.write(`${device} by the ${found.name}\n`);
  const { status } = spawnSync(process.execPath, ['--test', '--test-reporter=spec', here(`./${device}.js`)], {
    env: environment(found),
    stdio: 'inherit',
  });
  process.exitCode = status ?? 1;
}
