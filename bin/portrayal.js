#!/usr/bin/env node
// Syntax that old versions of Node understand too, so that they get the message below and not a syntax error.
var wanted = [20, 9];
var found = process.versions.node.split('.').map(Number);

if (found[0] < wanted[0] || (found[0] === wanted[0] && found[1] < wanted[1])) {
  console.error(`portrayal needs Node ${wanted.join('.')} or newer; this is Node ${process.versions.node}.`);
  process.exitCode = 1;
} else {
  // What is read is gone (`portrayal --help | head`): nothing to tell anybody.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error) => {
      if (error.code !== 'EPIPE') throw error;
    });
  }
  import('../dist/src/cli/restart.js')
    .then((own) => {
      own.restartWithAllocatorSettings();
      return import('../dist/src/cli/main.js');
    })
    .then(
      (cli) =>
        cli.main(process.argv.slice(2)).then((status) => {
          process.exitCode = status;
        }),
      (error) => {
        if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
        console.error('portrayal is not installed or not built here. Run "npm ci" in its folder first.');
        process.exitCode = 1;
      },
    );
}
