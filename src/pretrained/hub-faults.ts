import { HubError } from '../errors.js';
import type { HubEnvironment } from './hub-environment.js';

/** What was asked for when the hub refused. */
export interface HubSubject extends Pick<HubEnvironment, 'endpoint' | 'token'> {
  readonly model: string;
  readonly revision: string;
}

/** Why the hub, or a server that it sent us on to, refused; from the status and the headers in which the hub gives its reason. */
export function refusal(response: Response, asked: HubSubject): HubError {
  const { endpoint, token, model, revision } = asked;
  const { status, headers } = response;
  const code = headers.get('X-Error-Code');
  const said = headers.get('X-Error-Message');
  const page = `${endpoint}/${model}`;
  if (status === 429) return rateLimit(headers, asked);
  if (new URL(response.url || endpoint).origin !== new URL(endpoint).origin) {
    // A storage server. Its addresses expire, so asking the hub again can help whatever it says.
    return new HubError(
      'server',
      `The server that holds the files of ${model} answered with status ${status}. Try again later.`,
    );
  }
  if (code === 'GatedRepo') {
    const then =
      token === undefined
        ? `then make a token at ${endpoint}/settings/tokens and give it in the environment variable HF_TOKEN, or log in with "hf auth login"`
        : 'with the account of the token in use (HF_TOKEN, or the one that "hf auth login" has saved). A fine-grained token also needs the permission to read gated repositories';
    return new HubError(
      'gated',
      `${model} is gated: its authors want their terms to be accepted first. Do so at ${page}, ${then}.`,
    );
  }
  if (code === 'RevisionNotFound') {
    return new HubError(
      'no-revision',
      `${model} has no revision "${revision}". Its branches and tags are at ${page}/tree/main.`,
    );
  }
  if (code === 'EntryNotFound') {
    return new HubError(
      'no-file',
      `A file of ${model} that the hub lists is not there (${new URL(response.url).pathname}). Try again later, or choose another revision.`,
    );
  }
  if (code === 'RepoNotFound' || status === 404 || (status === 401 && token === undefined)) {
    const private_ =
      token === undefined
        ? 'If it is private, give a token in the environment variable HF_TOKEN'
        : 'If it is private, the token in use (HF_TOKEN, or the one that "hf auth login" has saved) may not read it';
    return new HubError(
      'no-repository',
      `There is no model ${model} on ${endpoint}, and no folder of that name here. Check the spelling. ${private_}.`,
    );
  }
  if (status === 401 || status === 403) {
    return new HubError(
      'access',
      `${endpoint} refuses the token in use (HF_TOKEN, or the one that "hf auth login" has saved) for ${model}${said ? `: ${said}` : ''}. Make a new one at ${endpoint}/settings/tokens.`,
    );
  }
  return new HubError(
    'server',
    `${endpoint} answered with status ${status}${said ? ` (${said})` : ''}. Try again later.`,
  );
}

function rateLimit(headers: Headers, { endpoint, token }: HubSubject): HubError {
  // "Retry-After: 55", or the hub's own 'RateLimit: "api";r=0;t=55', both in seconds.
  const seconds = Number(
    headers.get('Retry-After') ?? /\bt=(\d+)/.exec(headers.get('RateLimit') ?? '')?.[1] ?? Number.NaN,
  );
  const retryAfter = Number.isFinite(seconds) && seconds >= 0 ? seconds : undefined;
  const login = token === undefined ? ' With a token (HF_TOKEN) more requests are allowed.' : '';
  return new HubError(
    'rate-limit',
    `${endpoint} has had too many requests from this machine. Try again ${retryAfter === undefined ? 'later' : `in ${Math.ceil(retryAfter)} s`}; what has been downloaded is kept.${login}`,
    {},
    retryAfter,
  );
}

/** What the codes of failed connections mean to the person at the keyboard. */
const connectionFaults: Readonly<Record<string, string>> = {
  ENOTFOUND: 'its name is not known, so this machine may not be connected to the network',
  EAI_AGAIN: 'names cannot be looked up, so this machine may not be connected to the network',
  ECONNREFUSED: 'the connection was refused',
  ECONNRESET: 'the connection broke',
  UND_ERR_SOCKET: 'the connection broke',
  ENETUNREACH: 'the network cannot be reached',
  EHOSTUNREACH: 'the network cannot be reached',
  ETIMEDOUT: 'it does not answer',
  UND_ERR_CONNECT_TIMEOUT: 'it does not answer',
  UND_ERR_HEADERS_TIMEOUT: 'it does not answer',
};

/** A connection that could not be made, or broke. */
export function networkFault(error: unknown, endpoint: string): HubError {
  const { code, message } = rootCause(error);
  const reason = connectionFaults[code ?? ''] ?? message;
  return new HubError(
    'network',
    `${endpoint} cannot be reached: ${reason}. What has been downloaded is kept: the same command goes on from there. ` +
      `Without a connection, --offline takes what is on this machine. Behind a proxy, set HTTPS_PROXY and NODE_USE_ENV_PROXY=1 (Node 24 or newer).`,
    { cause: error },
  );
}

/** `fetch` wraps the reason, sometimes more than once. */
function rootCause(error: unknown): { code: string | undefined; message: string } {
  let inner = error;
  while (inner instanceof Error && inner.cause !== undefined) inner = inner.cause;
  const code =
    inner instanceof Error && 'code' in inner && typeof inner.code === 'string' ? inner.code : undefined;
  return { code, message: inner instanceof Error ? inner.message || inner.name : String(inner) };
}
