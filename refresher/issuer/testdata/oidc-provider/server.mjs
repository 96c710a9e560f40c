// A real authorization server for the tests: panva's oidc-provider on loopback,
// beside it an API that takes its access tokens, a login that needs no browser,
// and a person "demo" who agrees to everything, or to nothing once told so. It takes its settings as JSON in SETTINGS, prints "ready <issuer>" and
// ends with its standard input.
import { createServer } from 'node:http';
import { createLocalJWKSet, exportJWK, generateKeyPair, jwtVerify } from 'jose';
import Provider from 'oidc-provider';

const { clients, accessTokenTTL = 3600 } = JSON.parse(process.env.SETTINGS);

const resources = { 'urn:test:jwt': 'jwt', 'urn:test:opaque': 'opaque' };
const scope = 'openid offline_access';

const { privateKey, publicKey } = await generateKeyPair('RS256', { extractable: true });
const about = { kid: 'server', alg: 'RS256', use: 'sig' };
const keys = createLocalJWKSet({ keys: [{ ...(await exportJWK(publicKey)), ...about }] });

const server = createServer();
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
	clients: clients.map((client) => ({
		grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
		redirect_uris: ['https://client.example/callback'],
		...client,
	})),
	jwks: { keys: [{ ...(await exportJWK(privateKey)), ...about }] },
	cookies: { keys: ['not used'] },
	scopes: ['openid', 'offline_access', 'api'],
	rotateRefreshToken: (ctx) => !ctx.oidc.client.clientId.includes('static'),
	ttl: { AccessToken: accessTokenTTL, RefreshToken: 86400, Grant: 86400, IdToken: accessTokenTTL },
	findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
	interactions: { url: (ctx, interaction) => `/test/person/${interaction.uid}` },
	features: {
		devInteractions: { enabled: false },
		deviceFlow: { enabled: true },
		introspection: { enabled: true, allowedPolicy: () => true },
		revocation: { enabled: true },
		resourceIndicators: {
			enabled: true,
			useGrantedResource: () => true,
			getResourceServerInfo: (ctx, resource) => ({
				scope: 'api', accessTokenFormat: resources[resource], accessTokenTTL,
			}),
		},
	},
});

let agrees = true; // the person

// granted is what the person agrees to.
async function granted(clientId, names, resources = []) {
	const grant = new provider.Grant({ accountId: 'demo', clientId });
	grant.addOIDCScope(names);
	for (const resource of [resources].flat()) grant.addResourceScope(resource, 'api');
	return grant.save();
}

// person signs in and consents, or refuses, in the browser that comes by.
async function person(req, res) {
	const { params } = await provider.interactionDetails(req, res);
	const result = agrees
		? { login: { accountId: 'demo' }, consent: { grantId: await granted(params.client_id, params.scope ?? '', params.resource) } }
		: { error: 'access_denied', error_description: 'CANARY of the person' };
	await provider.interactionFinished(req, res, result, { mergeWithLastSubmission: false });
}

// device is the person, who enters a device code, by the code's page or not.
async function device({ user_code: userCode }) {
	const code = await provider.DeviceCode.findByUserCode(userCode.replaceAll('-', ''));
	const { client_id: clientId, scope: names, resource } = code.params;
	Object.assign(code, agrees
		? { accountId: 'demo', grantId: await granted(clientId, names ?? '', resource), scope: names, resource, authTime: Math.floor(Date.now() / 1000) }
		: { error: 'access_denied', errorDescription: 'CANARY of the person' });
	await code.save();
	return {};
}

const stats = { exchanges: 0, refused: {}, served: 0, unauthorized: 0 };
provider.on('grant.success', () => { stats.exchanges += 1; });
provider.on('grant.error', (ctx, { error }) => { stats.refused[error] = (stats.refused[error] ?? 0) + 1; });

// login issues what an authorization code would have been exchanged for.
async function login({ client_id: clientId, format = 'opaque' }) {
	const client = await provider.Client.find(clientId);
	const resource = Object.keys(resources).find((name) => resources[name] === format);
	const grant = new provider.Grant({ accountId: 'demo', clientId });
	grant.addOIDCScope(scope);
	grant.addResourceScope(resource, 'api');
	const common = {
		accountId: 'demo', client, grantId: await grant.save(), gty: 'authorization_code', scope: `${scope} api`,
	};
	const access = new provider.AccessToken({ ...common, scope: 'api' });
	access.resourceServer = new provider.ResourceServer(resource, {
		scope: 'api', accessTokenFormat: format, accessTokenTTL,
	});
	const refresh = new provider.RefreshToken({ ...common, resource, authTime: Math.floor(Date.now() / 1000) });
	return { access_token: await access.save(), refresh_token: await refresh.save(), expires_in: accessTokenTTL };
}

// holder is whose a token is; undefined where it is not good.
async function holder(token) {
	if (token.split('.').length === 3) {
		const { payload } = await jwtVerify(token, keys, { issuer }).catch(() => ({}));
		return payload?.sub;
	}
	return (await provider.AccessToken.find(token))?.accountId;
}

async function body(req) {
	let text = '';
	for await (const chunk of req) text += chunk;
	return text;
}

function reply(res, status, value) {
	res.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
}

const pages = {
	'/test/login': async (req, res) => reply(res, 200, await login(JSON.parse(await body(req)))),
	'/test/agrees': async (req, res) => { agrees = JSON.parse(await body(req)); reply(res, 200, { agrees }); },
	'/test/device': async (req, res) => reply(res, 200, await device(JSON.parse(await body(req)))),
	'/test/stats': async (req, res) => reply(res, 200, stats),
	'/api/echo': async (req, res) => {
		const user = await holder((req.headers.authorization ?? '').replace(/^Bearer /, ''));
		const text = await body(req);
		stats[user ? 'served' : 'unauthorized'] += 1;
		reply(res, user ? 200 : 401, { user, got: text.length });
	},
};

const oauth = provider.callback();
server.on('request', (req, res) => {
	const path = req.url.split('?')[0];
	const page = path.startsWith('/test/person/') ? person : pages[path];
	if (!page) {
		oauth(req, res);
		return;
	}
	page(req, res).catch((err) => reply(res, 500, { error: String(err) }));
});

process.stdin.on('end', () => process.exit(0)).resume();
console.log(`ready ${issuer}`);
