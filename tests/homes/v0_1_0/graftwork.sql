BEGIN TRANSACTION;
CREATE TABLE adapters ( -- one row per named task; its versions and aliases point here
	name TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_adapters PRIMARY KEY (name), 
	CONSTRAINT ck_adapters_name CHECK (length(name) BETWEEN 1 AND 64)
);
INSERT INTO "adapters" VALUES('intents','2026-11-29T06:04:52.757498Z');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE alias_events ( -- what happened to versions and aliases, in order and for good: what served at time T is read from here
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at TEXT NOT NULL, 
	action TEXT NOT NULL, 
	name TEXT NOT NULL, 
	alias TEXT, 
	from_version INTEGER, 
	to_version INTEGER, 
	actor TEXT NOT NULL, 
	reason TEXT, 
	CONSTRAINT fk_alias_events_from_version FOREIGN KEY(name, from_version) REFERENCES versions (name, number), 
	CONSTRAINT fk_alias_events_to_version FOREIGN KEY(name, to_version) REFERENCES versions (name, number), 
	CONSTRAINT ck_alias_events_action CHECK (action IN ('push', 'promote', 'rollback', 'retire')), 
	CONSTRAINT ck_alias_events_alias_moves CHECK ((alias IS NOT NULL) = (action IN ('promote', 'rollback')))
);
INSERT INTO "alias_events" VALUES(1,'2026-11-29T06:04:52.757498Z','push','intents',NULL,NULL,1,'ann',NULL);
INSERT INTO "alias_events" VALUES(2,'2026-11-29T06:04:52.757498Z','promote','intents','live',NULL,1,'ann',NULL);
INSERT INTO "alias_events" VALUES(3,'2026-11-29T06:04:52.792972Z','push','intents',NULL,NULL,2,'ann',NULL);
INSERT INTO "alias_events" VALUES(4,'2026-11-29T06:04:52.792972Z','promote','intents','candidate',NULL,2,'ann',NULL);
CREATE TABLE aliases ( -- where each alias of an adapter points now; alias_events says since when, by whom, and where before
	name TEXT NOT NULL, 
	alias TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	CONSTRAINT pk_aliases PRIMARY KEY (name, alias), 
	CONSTRAINT fk_aliases_version FOREIGN KEY(name, number) REFERENCES versions (name, number)
);
INSERT INTO "aliases" VALUES('intents','live',1);
INSERT INTO "aliases" VALUES('intents','candidate',2);
CREATE TABLE experiment_epochs ( -- which arcs of the hash belonged to which arm, from when on: [start, end, arm] each
	experiment TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	at TEXT NOT NULL, 
	arcs JSON NOT NULL, 
	CONSTRAINT pk_experiment_epochs PRIMARY KEY (experiment, number), 
	CONSTRAINT fk_experiment_epochs_experiment FOREIGN KEY(experiment) REFERENCES experiments (name)
);
INSERT INTO "experiment_epochs" VALUES('first',1,'2026-11-29T06:04:52.807740Z','[[0.0, 0.5, "new"], [0.5, 1.0, "old"]]');
CREATE TABLE experiment_events ( -- what happened to experiments, in order and for good
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at TEXT NOT NULL, 
	experiment TEXT NOT NULL, 
	action TEXT NOT NULL, 
	arm TEXT, 
	actor TEXT NOT NULL, 
	reason TEXT, 
	details JSON, 
	CONSTRAINT fk_experiment_events_experiment FOREIGN KEY(experiment) REFERENCES experiments (name), 
	CONSTRAINT ck_experiment_events_action CHECK (action IN ('start', 'weights', 'rollback', 'advice', 'alarm', 'stop'))
);
INSERT INTO "experiment_events" VALUES(1,'2026-11-29T06:04:52.812945Z','first','start',NULL,'ann',NULL,'{"weights": {"old": 0.5, "new": 0.5}}');
INSERT INTO "experiment_events" VALUES(2,'2026-11-29T06:04:52.857475Z','first','stop',NULL,'ann','long enough','{"decision": "stopped", "reading": null}');
CREATE TABLE experiment_readings ( -- how an experiment stood at a time: intervals, guardrails, shares
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	experiment TEXT NOT NULL, 
	at TEXT NOT NULL, 
	units INTEGER NOT NULL, 
	reading JSON NOT NULL, 
	CONSTRAINT fk_experiment_readings_experiment FOREIGN KEY(experiment) REFERENCES experiments (name)
);
CREATE TABLE experiment_units ( -- what came of each unit within its window, in the order in which it counts; learned: left out, because a version had learned from this user or prompt
	experiment TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	unit TEXT NOT NULL, 
	arm TEXT NOT NULL, 
	epoch INTEGER NOT NULL, 
	first_at TEXT NOT NULL, 
	closed_at TEXT NOT NULL, 
	learned BOOLEAN NOT NULL, 
	outcome JSON NOT NULL, 
	CONSTRAINT pk_experiment_units PRIMARY KEY (experiment, number), 
	CONSTRAINT uq_experiment_units_unit UNIQUE (experiment, unit), 
	CONSTRAINT fk_experiment_units_epoch FOREIGN KEY(experiment, epoch) REFERENCES experiment_epochs (experiment, number), 
	CONSTRAINT ck_experiment_units_learned CHECK (learned IN (0, 1))
);
CREATE TABLE experiments ( -- what was asked, once and for all; with its end comes the outcome, and what it was decided on
	name TEXT NOT NULL, 
	adapter TEXT NOT NULL, 
	"plan" JSON NOT NULL, 
	salt TEXT NOT NULL, 
	started_at TEXT NOT NULL, 
	started_by TEXT NOT NULL, 
	ended_at TEXT, 
	outcome JSON, 
	CONSTRAINT pk_experiments PRIMARY KEY (name), 
	CONSTRAINT fk_experiments_adapter FOREIGN KEY(adapter) REFERENCES adapters (name), 
	CONSTRAINT ck_experiments_outcome CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
INSERT INTO "experiments" VALUES('first','intents','{"adapter": "intents", "arms": [{"name": "old", "version": 1, "alias": null, "weight": 0.5, "shadow": null, "system": null, "sampling": {}}, {"name": "new", "version": 2, "alias": null, "weight": 0.5, "shadow": null, "system": null, "sampling": {}}], "metric": {"name": "thumb", "over": null, "range": null, "goal": "up"}, "guardrails": [{"metric": {"name": "error_rate", "over": null, "range": null, "goal": "down"}, "limit": null, "margin": 0.05, "alpha": 0.01}], "rule": {"promote_above": 0.0, "stop_below": 0.0, "max_units": null, "until": null, "automatic": false}, "ramp": null, "window_seconds": 3600.0, "alpha": 0.05, "unrated": "leave_out", "allocation": "fixed"}','db0c87b79d2c77bf8bfb65b29a535c26','2026-11-29T06:04:52.807740Z','ann','2026-11-29T06:04:52.856882Z','{"decision": "stopped", "arm": null, "reason": "long enough", "actor": "ann", "reading": null}');
CREATE TABLE exposures ( -- one row per logged request that an experiment answered, in the order in which they were logged
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	experiment TEXT NOT NULL, 
	interaction_id TEXT NOT NULL, 
	unit TEXT NOT NULL, 
	arm TEXT NOT NULL, 
	probability DOUBLE NOT NULL, 
	created_at TEXT NOT NULL, 
	status TEXT NOT NULL, 
	total_ms DOUBLE NOT NULL, 
	completion_tokens INTEGER NOT NULL
);
INSERT INTO "exposures" VALUES(1,'first','chatcmpl-AQdrC8CEBUhcZXFt-NwJaW50ZW50c0AyBWZpcnN0A25ldz_gAAAAAAAAhfRLYGoCV5uuYlxTzKCpyT58Ygg1R1_o','85f44b606a02579b','new',0.5,'2026-11-29T06:04:52.000000Z','ok',40.0,3);
CREATE TABLE feedback ( -- what was said of answers, in order and for good; only texts can be erased, and leave the judgement
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at TEXT NOT NULL, 
	interaction_id TEXT NOT NULL, 
	interaction_at TEXT NOT NULL, 
	adapter TEXT, 
	version INTEGER, 
	experiment TEXT, 
	arm TEXT, 
	probability DOUBLE, 
	unit TEXT, 
	choice INTEGER NOT NULL, 
	thumb TEXT, 
	score DOUBLE, 
	correction TEXT, 
	preferred_over TEXT, 
	preferred_over_choice INTEGER, 
	comment TEXT, 
	metadata JSON, 
	end_user TEXT, 
	key_id TEXT NOT NULL, 
	idempotency_key TEXT, 
	erased_at TEXT, 
	CONSTRAINT uq_feedback_idempotency_key UNIQUE (key_id, idempotency_key), 
	CONSTRAINT ck_feedback_thumb CHECK (thumb IN ('up', 'down')), 
	CONSTRAINT ck_feedback_score CHECK (score BETWEEN 0 AND 1), 
	CONSTRAINT ck_feedback_preferred CHECK ((preferred_over IS NULL) = (preferred_over_choice IS NULL)), 
	CONSTRAINT ck_feedback_adapter CHECK ((adapter IS NULL) = (version IS NULL)), 
	CONSTRAINT ck_feedback_experiment CHECK ((experiment IS NULL) = (arm IS NULL) AND (arm IS NULL) = (probability IS NULL))
);
INSERT INTO "feedback" VALUES(1,'2026-11-29T06:04:52.842241Z','chatcmpl-AQdrC8CEBUhcZXFt-NwJaW50ZW50c0AyBWZpcnN0A25ldz_gAAAAAAAAhfRLYGoCV5uuYlxTzKCpyT58Ygg1R1_o','2026-11-29T06:04:52.000000Z','intents',2,'first','new',0.5,'85f44b606a02579b',0,'up',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'0944103c3d89','once',NULL);
INSERT INTO "feedback" VALUES(2,'2026-11-29T06:04:52.852586Z','chatcmpl-AQVrC8CE4p_-WB1Yj24JaW50ZW50c0AxhfRLYGoCV5sz3pxvZkx6fOBhNZps9co4','2026-11-29T06:04:52.000000Z','intents',1,NULL,NULL,NULL,'85f44b606a02579b',0,NULL,NULL,'card_delivery_estimate',NULL,NULL,'Near, but not it.','{"source": "chat"}',NULL,'0944103c3d89',NULL,NULL);
CREATE TABLE files ( -- what was uploaded, and results of jobs; the bytes are in the folder of files, under the id
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	filename TEXT NOT NULL, 
	purpose TEXT NOT NULL, 
	num_bytes BIGINT NOT NULL, 
	digest TEXT NOT NULL, 
	key_id TEXT NOT NULL, 
	deleted_at TEXT, 
	CONSTRAINT uq_files_id UNIQUE (id), 
	CONSTRAINT ck_files_purpose CHECK (purpose IN ('fine-tune', 'fine-tune-results'))
);
INSERT INTO "files" VALUES(1,'file-e0336265a6fbb10c8862382f','2026-11-29T06:04:52.868657Z','cards.jsonl','fine-tune',230,'sha256:d6a78a95b48574752c59478a9e52201914219f52f44f11f74a8735c72be52dc2','ac2c01696601',NULL);
CREATE TABLE interactions ( -- one row per request that was answered and logged; kept as long as policies say
	id TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	base TEXT NOT NULL, 
	model TEXT NOT NULL, 
	adapter TEXT, 
	version INTEGER, 
	experiment TEXT, 
	arm TEXT, 
	probability DOUBLE, 
	unit TEXT, 
	status TEXT NOT NULL, 
	error TEXT, 
	prompt JSON NOT NULL, 
	sampling JSON NOT NULL, 
	completions JSON NOT NULL, 
	prompt_tokens INTEGER NOT NULL, 
	completion_tokens INTEGER NOT NULL, 
	queue_ms DOUBLE, 
	first_token_ms DOUBLE, 
	total_ms DOUBLE NOT NULL, 
	end_user TEXT, 
	metadata JSON, 
	key_id TEXT NOT NULL, 
	CONSTRAINT pk_interactions PRIMARY KEY (id), 
	CONSTRAINT ck_interactions_kind CHECK (kind IN ('chatcmpl', 'cmpl')), 
	CONSTRAINT ck_interactions_status CHECK (status IN ('ok', 'error', 'cancelled')), 
	CONSTRAINT ck_interactions_adapter CHECK ((adapter IS NULL) = (version IS NULL)), 
	CONSTRAINT ck_interactions_experiment CHECK ((experiment IS NULL) = (arm IS NULL) AND (arm IS NULL) = (probability IS NULL))
);
INSERT INTO "interactions" VALUES('chatcmpl-AQdrC8CEBUhcZXFt-NwJaW50ZW50c0AyBWZpcnN0A25ldz_gAAAAAAAAhfRLYGoCV5uuYlxTzKCpyT58Ygg1R1_o','2026-11-29T06:04:52.000000Z','chatcmpl','smollm2-135m-instruct','intents','intents',2,'first','new',0.5,'85f44b606a02579b','ok',NULL,'{"messages": [{"role": "user", "content": "Wo ist meine Karte?"}]}','{"temperature": 0.0, "max_tokens": 8}','[{"index": 0, "text": "card_arrival", "finish_reason": "stop"}]',12,3,1.5,20.25,40.0,'maria',NULL,'0944103c3d89');
INSERT INTO "interactions" VALUES('chatcmpl-AQVrC8CE4p_-WB1Yj24JaW50ZW50c0AxhfRLYGoCV5sz3pxvZkx6fOBhNZps9co4','2026-11-29T06:04:52.000000Z','chatcmpl','smollm2-135m-instruct','intents','intents',1,NULL,NULL,NULL,'85f44b606a02579b','ok',NULL,'{"messages": [{"role": "user", "content": "Wo ist meine Karte?"}]}','{"temperature": 0.0, "max_tokens": 8}','[{"index": 0, "text": "card_arrival", "finish_reason": "stop"}]',12,3,1.5,20.25,40.0,'maria',NULL,'0944103c3d89');
CREATE TABLE job_checkpoints ( -- the steps after which a run was saved whole
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at TEXT NOT NULL, 
	job TEXT NOT NULL, 
	step INTEGER NOT NULL, 
	metrics JSON NOT NULL, 
	CONSTRAINT uq_job_checkpoints_step UNIQUE (job, step), 
	CONSTRAINT fk_job_checkpoints_job FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "job_checkpoints" VALUES(1,'2026-11-29T06:04:52.909503Z','ftjob-eb30c95a84e84dcb68b1a5b1',1,'{"train_loss": 1.25}');
CREATE TABLE job_events ( -- what happened to a job, in order and for good
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at TEXT NOT NULL, 
	job TEXT NOT NULL, 
	level TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	message TEXT NOT NULL, 
	data JSON NOT NULL, 
	CONSTRAINT fk_job_events_job FOREIGN KEY(job) REFERENCES jobs (id), 
	CONSTRAINT ck_job_events_level CHECK (level IN ('info', 'warn', 'error')), 
	CONSTRAINT ck_job_events_kind CHECK (kind IN ('message', 'metrics'))
);
INSERT INTO "job_events" VALUES(1,'2026-11-29T06:04:52.882539Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','Created fine-tuning job: ftjob-eb30c95a84e84dcb68b1a5b1','{}');
INSERT INTO "job_events" VALUES(2,'2026-11-29T06:04:52.897365Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','Files validated, the job is queued.','{}');
INSERT INTO "job_events" VALUES(3,'2026-11-29T06:04:52.899038Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','The job has started.','{}');
INSERT INTO "job_events" VALUES(4,'2026-11-29T06:04:52.910380Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','Step 1/2: training loss=1.25','{}');
INSERT INTO "job_events" VALUES(5,'2026-11-29T06:04:52.918735Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','New fine-tuned model created: intents@2','{}');
INSERT INTO "job_events" VALUES(6,'2026-11-29T06:04:52.918735Z','ftjob-eb30c95a84e84dcb68b1a5b1','info','message','The job has successfully completed.','{}');
INSERT INTO "job_events" VALUES(7,'2026-11-29T06:04:52.925371Z','ftjob-7938ee4cee9d5e4909f67492','info','message','Created fine-tuning job: ftjob-7938ee4cee9d5e4909f67492','{}');
INSERT INTO "job_events" VALUES(8,'2026-11-29T06:04:52.933809Z','ftjob-7938ee4cee9d5e4909f67492','warn','message','The job was cancelled by ann.','{}');
CREATE TABLE jobs ( -- one row per training run that was asked for: what, where it stands, what came of it
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	created_by TEXT NOT NULL, 
	key_id TEXT NOT NULL, 
	idempotency_key TEXT, 
	model TEXT NOT NULL, 
	name TEXT NOT NULL, 
	parent TEXT, 
	method TEXT NOT NULL, 
	hyperparameters JSON NOT NULL, 
	seed BIGINT NOT NULL, 
	training_file TEXT NOT NULL, 
	validation_file TEXT, 
	metadata JSON NOT NULL, 
	status TEXT NOT NULL, 
	started_at TEXT, 
	finished_at TEXT, 
	owner TEXT, 
	token BIGINT NOT NULL, 
	lease_until TEXT, 
	attempts INTEGER NOT NULL, 
	publishing BOOLEAN NOT NULL, 
	relayed_bytes BIGINT NOT NULL, 
	progress JSON NOT NULL, 
	version TEXT, 
	result_files JSON NOT NULL, 
	trained_tokens BIGINT, 
	metrics JSON NOT NULL, 
	error JSON, 
	CONSTRAINT uq_jobs_id UNIQUE (id), 
	CONSTRAINT uq_jobs_idempotency_key UNIQUE (key_id, idempotency_key), 
	CONSTRAINT ck_jobs_status CHECK (status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')), 
	CONSTRAINT ck_jobs_version CHECK ((status = 'succeeded') = (version IS NOT NULL)), 
	CONSTRAINT ck_jobs_error CHECK ((status = 'failed') = (error IS NOT NULL)), 
	CONSTRAINT ck_jobs_finished CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)), 
	CONSTRAINT ck_jobs_owner CHECK (finished_at IS NULL OR owner IS NULL), 
	CONSTRAINT ck_jobs_lease CHECK ((owner IS NULL) = (lease_until IS NULL)), 
	CONSTRAINT ck_jobs_publishing CHECK (publishing IN (0, 1))
);
INSERT INTO "jobs" VALUES(1,'ftjob-eb30c95a84e84dcb68b1a5b1','2026-11-29T06:04:52.880622Z','ann','ac2c01696601',NULL,'intents@1','intents','intents@1','sft','{"n_epochs": 1}',0,'file-e0336265a6fbb10c8862382f',NULL,'{"for": "the shop"}','succeeded','2026-11-29T06:04:52.898693Z','2026-11-29T06:04:52.917930Z',NULL,2,NULL,1,1,0,'{"step": 1, "total": 2}','intents@2','[]',64,'{"train_loss": 0.5}',NULL);
INSERT INTO "jobs" VALUES(2,'ftjob-7938ee4cee9d5e4909f67492','2026-11-29T06:04:52.924749Z','ann','ac2c01696601',NULL,'smollm2-135m-instruct','other',NULL,'auto','{}',0,'file-e0336265a6fbb10c8862382f',NULL,'{}','cancelled',NULL,'2026-11-29T06:04:52.933049Z',NULL,0,NULL,0,0,0,'{}',NULL,'[]',NULL,'{}',NULL);
CREATE TABLE keys ( -- who may call the server: bearer keys, of which only a hash is kept
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	role TEXT NOT NULL, 
	secret_sha256 TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	revoked_at TEXT, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT ck_keys_role CHECK (role IN ('app', 'operator', 'admin'))
);
INSERT INTO "keys" VALUES('ac2c01696601','ann','admin','61592f22c765ca1d71f9d3023d9e7cea49d03cceb53e63d929bc513edcbca70b','2026-11-29T06:04:52.681677Z',NULL);
INSERT INTO "keys" VALUES('0944103c3d89','the shop','app','9093988980784605e69b5a91f1c2319c3b2afe6053c09fbba880a70e038569db','2026-11-29T06:04:52.688284Z',NULL);
INSERT INTO "keys" VALUES('370eaf34e47b','an old laptop','operator','a667ad6b5814832feb84d47c2ab33d36d5808ed1e718951cbaea7bafd85ed060','2026-11-29T06:04:52.692231Z','2026-11-29T06:04:52.696592Z');
CREATE TABLE learned_from ( -- which answers a data set was made of, as hashes of their ids; versions name it by their data_digest
	data_digest TEXT NOT NULL, 
	interaction_sha256 TEXT NOT NULL, 
	CONSTRAINT pk_learned_from PRIMARY KEY (data_digest, interaction_sha256)
);
CREATE TABLE learning_policies ( -- when an adapter learns by itself: after so many new judgements, or every so many days with some
	name TEXT NOT NULL, 
	"after" INTEGER, 
	every_days DOUBLE, 
	at_least INTEGER NOT NULL, 
	control_every INTEGER, 
	method TEXT NOT NULL, 
	hyperparameters JSON NOT NULL, 
	actor TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	updated_at TEXT NOT NULL, 
	CONSTRAINT pk_learning_policies PRIMARY KEY (name), 
	CONSTRAINT fk_learning_policies_adapter FOREIGN KEY(name) REFERENCES adapters (name), 
	CONSTRAINT ck_learning_policies_after CHECK (after >= 1), 
	CONSTRAINT ck_learning_policies_every_days CHECK (every_days > 0), 
	CONSTRAINT ck_learning_policies_when CHECK (after IS NOT NULL OR every_days IS NOT NULL), 
	CONSTRAINT ck_learning_policies_at_least CHECK (at_least >= 1), 
	CONSTRAINT ck_learning_policies_control_every CHECK (control_every >= 1)
);
INSERT INTO "learning_policies" VALUES('intents',1000,NULL,10,NULL,'auto','{}','ann','2026-11-29T06:04:52.940756Z','2026-11-29T06:04:52.940756Z');
CREATE TABLE leases ( -- what only one process may do at a time, and who does it until when; token counts the owners
	name TEXT NOT NULL, 
	owner TEXT, 
	token BIGINT NOT NULL, 
	acquired_at TEXT NOT NULL, 
	expires_at TEXT NOT NULL, 
	CONSTRAINT pk_leases PRIMARY KEY (name)
);
CREATE TABLE log_policies ( -- what is logged of an adapter (or the base, by its id) or a key, and for how long, unless by default
	scope TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	log BOOLEAN NOT NULL, 
	retention_days DOUBLE, 
	actor TEXT NOT NULL, 
	updated_at TEXT NOT NULL, 
	CONSTRAINT pk_log_policies PRIMARY KEY (scope, subject), 
	CONSTRAINT ck_log_policies_scope CHECK (scope IN ('adapter', 'key')), 
	CONSTRAINT ck_log_policies_retention_days CHECK (retention_days > 0), 
	CONSTRAINT ck_log_policies_log CHECK (log IN (0, 1))
);
INSERT INTO "log_policies" VALUES('adapter','intents',1,3650.0,'ann','2026-11-29T06:04:52.936152Z');
CREATE TABLE settings ( -- what this server made up once and must keep: secrets, by name
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_settings PRIMARY KEY (name)
);
INSERT INTO "settings" VALUES('interaction-ids','8014f91e2e338aa061914ef4f91022b58fe313146163eaaa8d6139b6e82d713d','2026-11-29T06:04:52.801326Z');
CREATE TABLE versions ( -- every pushed adapter folder, by the digest of its files: immutable but for being retired, once
	name TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	digest TEXT NOT NULL, 
	base_digest TEXT NOT NULL, 
	verified BOOLEAN NOT NULL, 
	rank INTEGER NOT NULL, 
	num_parameters BIGINT NOT NULL, 
	num_bytes BIGINT NOT NULL, 
	config JSON NOT NULL, 
	parent INTEGER, 
	data_digest TEXT, 
	metadata JSON NOT NULL, 
	created_at TEXT NOT NULL, 
	retired_at TEXT, 
	CONSTRAINT pk_versions PRIMARY KEY (name, number), 
	CONSTRAINT uq_versions_name_digest UNIQUE (name, digest), 
	CONSTRAINT fk_versions_name FOREIGN KEY(name) REFERENCES adapters (name), 
	CONSTRAINT fk_versions_parent FOREIGN KEY(name, parent) REFERENCES versions (name, number), 
	CONSTRAINT ck_versions_number CHECK (number >= 1), 
	CONSTRAINT ck_versions_parent CHECK (parent < number), 
	CONSTRAINT ck_versions_digest CHECK (digest LIKE 'sha256:%'), 
	CONSTRAINT ck_versions_base_digest CHECK (base_digest LIKE 'sha256:%'), 
	CONSTRAINT ck_versions_sizes CHECK (rank >= 0 AND num_parameters >= 0 AND num_bytes >= 0), 
	CONSTRAINT ck_versions_verified CHECK (verified IN (0, 1))
);
INSERT INTO "versions" VALUES('intents',1,'sha256:9d34d1d5bb9eb41c2216c1de07bf871ef51d5f4c761c40a2b2790253f93b86d7','sha256:1ea8eeb3edd74ade7e4f30322ad8d0d78dc76f244f1079eeadf5f5b9ed98a35c',1,1,768,2042,'{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 2, "target_modules": ["v_proj"], "layers_to_transform": [0], "graftwork": {"base_digest": "sha256:1ea8eeb3edd74ade7e4f30322ad8d0d78dc76f244f1079eeadf5f5b9ed98a35c"}}',NULL,NULL,'{}','2026-11-29T06:04:52.757498Z',NULL);
INSERT INTO "versions" VALUES('intents',2,'sha256:69c22a1b6d21ae1a7e05d139beca4de4c4156c27545d9557c6408d81e1623f29','sha256:1ea8eeb3edd74ade7e4f30322ad8d0d78dc76f244f1079eeadf5f5b9ed98a35c',1,1,768,2042,'{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 2, "target_modules": ["v_proj"], "layers_to_transform": [0], "graftwork": {"base_digest": "sha256:1ea8eeb3edd74ade7e4f30322ad8d0d78dc76f244f1079eeadf5f5b9ed98a35c"}}',1,NULL,'{"continues": "intents@1", "gates": {"passed": true, "refusals": []}}','2026-11-29T06:04:52.792972Z',NULL);
CREATE INDEX ix_alias_events_name_id ON alias_events (name, id);
CREATE TRIGGER versions_refuse_update BEFORE UPDATE OF
      name, number, digest, base_digest, verified, rank, num_parameters, num_bytes, config, parent, data_digest,
      metadata, created_at ON versions
    BEGIN SELECT RAISE(ABORT, 'a version is immutable, push a new one'); END;
CREATE TRIGGER versions_retire_once BEFORE UPDATE OF retired_at ON versions WHEN OLD.retired_at IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'a retired version stays retired'); END;
CREATE TRIGGER versions_refuse_delete BEFORE DELETE ON versions
    BEGIN SELECT RAISE(ABORT, 'a version is immutable, push a new one'); END;
CREATE TRIGGER versions_refuse_replace BEFORE INSERT ON versions
    WHEN EXISTS (SELECT 1 FROM versions WHERE name = NEW.name AND (number = NEW.number OR digest = NEW.digest))
    BEGIN SELECT RAISE(ABORT, 'a version is immutable, push a new one'); END;
CREATE TRIGGER alias_events_refuse_update BEFORE UPDATE ON alias_events
    BEGIN SELECT RAISE(ABORT, 'the history of aliases is append-only'); END;
CREATE TRIGGER alias_events_refuse_delete BEFORE DELETE ON alias_events
    BEGIN SELECT RAISE(ABORT, 'the history of aliases is append-only'); END;
CREATE TRIGGER alias_events_refuse_replace BEFORE INSERT ON alias_events
    WHEN EXISTS (SELECT 1 FROM alias_events WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'the history of aliases is append-only'); END;
CREATE INDEX ix_interactions_created ON interactions (created_at, id);
CREATE INDEX ix_interactions_adapter ON interactions (adapter, created_at, id);
CREATE INDEX ix_interactions_experiment ON interactions (experiment, created_at, id);
CREATE INDEX ix_interactions_end_user ON interactions (end_user, created_at, id);
CREATE INDEX ix_feedback_interaction ON feedback (interaction_id, id);
CREATE INDEX ix_feedback_adapter ON feedback (adapter, id);
CREATE INDEX ix_feedback_experiment ON feedback (experiment, id);
CREATE INDEX ix_feedback_unit ON feedback (unit, id);
CREATE INDEX ix_feedback_end_user ON feedback (end_user, id);
CREATE INDEX ix_feedback_at ON feedback (at, id);
CREATE INDEX ix_learned_from_interaction ON learned_from (interaction_sha256);
CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF id, at, interaction_id, interaction_at, adapter, version, experiment, arm, probability, unit, choice, thumb, score, preferred_over, preferred_over_choice, key_id, idempotency_key ON feedback
    BEGIN SELECT RAISE(ABORT, 'feedback is append-only'); END;
CREATE TRIGGER feedback_erase_only BEFORE UPDATE OF correction, comment, metadata, end_user, erased_at ON feedback WHEN NOT (NEW.correction IS NULL AND NEW.comment IS NULL AND NEW.metadata IS NULL AND NEW.end_user IS NULL AND NEW.erased_at IS NOT NULL)
    BEGIN SELECT RAISE(ABORT, 'feedback is append-only'); END;
CREATE TRIGGER feedback_refuse_delete BEFORE DELETE ON feedback
    BEGIN SELECT RAISE(ABORT, 'feedback is append-only'); END;
CREATE TRIGGER feedback_refuse_replace BEFORE INSERT ON feedback
    WHEN EXISTS (SELECT 1 FROM feedback WHERE id = NEW.id
                 OR (key_id = NEW.key_id AND idempotency_key = NEW.idempotency_key))
    BEGIN SELECT RAISE(ABORT, 'feedback is append-only'); END;
CREATE UNIQUE INDEX uq_experiments_running ON experiments (adapter) WHERE ended_at IS NULL;
CREATE INDEX ix_experiment_events_experiment ON experiment_events (experiment, id);
CREATE INDEX ix_exposures_experiment ON exposures (experiment, seq);
CREATE INDEX ix_exposures_unit ON exposures (experiment, unit);
CREATE INDEX ix_experiment_readings_experiment ON experiment_readings (experiment, id);
CREATE TRIGGER experiments_refuse_update BEFORE UPDATE ON experiments
    WHEN OLD.ended_at IS NOT NULL OR NEW.ended_at IS NULL OR NEW.name <> OLD.name OR NEW.adapter <> OLD.adapter
      OR NEW.plan <> OLD.plan OR NEW.salt <> OLD.salt OR NEW.started_at <> OLD.started_at
    BEGIN SELECT RAISE(ABORT, 'the plan of an experiment is fixed and its end is final, start another one'); END;
CREATE TRIGGER experiments_refuse_delete BEFORE DELETE ON experiments
    BEGIN SELECT RAISE(ABORT, 'the plan of an experiment is fixed and its end is final, start another one'); END;
CREATE TRIGGER experiment_epochs_refuse_update BEFORE UPDATE ON experiment_epochs
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER experiment_epochs_refuse_delete BEFORE DELETE ON experiment_epochs
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER experiment_events_refuse_update BEFORE UPDATE ON experiment_events
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER experiment_events_refuse_delete BEFORE DELETE ON experiment_events
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER experiment_units_refuse_update BEFORE UPDATE ON experiment_units
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER experiment_units_refuse_delete BEFORE DELETE ON experiment_units
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER exposures_refuse_update BEFORE UPDATE ON exposures
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER exposures_refuse_delete BEFORE DELETE ON exposures
        BEGIN SELECT RAISE(ABORT, 'the record of experiments is append-only'); END;
CREATE TRIGGER interactions_are_exposures AFTER INSERT ON interactions
    WHEN NEW.experiment IS NOT NULL
    BEGIN INSERT INTO exposures (experiment, interaction_id, unit, arm, probability, created_at, status, total_ms, completion_tokens) SELECT NEW.experiment, NEW.id, coalesce(NEW.unit, NEW.id), NEW.arm, NEW.probability, NEW.created_at, NEW.status, NEW.total_ms, NEW.completion_tokens; END;
CREATE INDEX ix_jobs_status ON jobs (status, number);
CREATE INDEX ix_job_events_job ON job_events (job, id);
CREATE TRIGGER jobs_refuse_update BEFORE UPDATE ON jobs
    WHEN OLD.finished_at IS NOT NULL OR NEW.id <> OLD.id OR NEW.name <> OLD.name OR NEW.created_at <> OLD.created_at
    BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change, submit another one'); END;
CREATE TRIGGER jobs_refuse_delete BEFORE DELETE ON jobs
    BEGIN SELECT RAISE(ABORT, 'the record of jobs is append-only'); END;
CREATE TRIGGER job_events_refuse_update BEFORE UPDATE ON job_events
        BEGIN SELECT RAISE(ABORT, 'the record of jobs is append-only'); END;
CREATE TRIGGER job_events_refuse_delete BEFORE DELETE ON job_events
        BEGIN SELECT RAISE(ABORT, 'the record of jobs is append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('alias_events',4);
INSERT INTO "sqlite_sequence" VALUES('experiment_events',2);
INSERT INTO "sqlite_sequence" VALUES('exposures',1);
INSERT INTO "sqlite_sequence" VALUES('feedback',2);
INSERT INTO "sqlite_sequence" VALUES('files',1);
INSERT INTO "sqlite_sequence" VALUES('jobs',2);
INSERT INTO "sqlite_sequence" VALUES('job_events',8);
INSERT INTO "sqlite_sequence" VALUES('job_checkpoints',1);
COMMIT;
