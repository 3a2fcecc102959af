//! Secrets planted in every kind of file, whole and broken: no output of the audit holds ten characters of one in a row.

use super::*;

/// Where a secret may stand: the file, and what is written there. `{}` is the secret.
const PLANTS: &[(&str, &str)] = &[
    ("config/puma.rb", "ENV[\"SECRET_KEY_BASE\"] = \"{}\""),
    ("config/puma.rb", "redis_password = '{}'"),
    ("config/puma.rb", "ENV[\"DATABASE_URL\"] ||= \"postgres://shop:{}@db/shop\""),
    ("config/puma.rb", "activate_control_app \"unix://tmp/c.sock\", { auth_token: \"{}\" }"),
    ("config/puma.rb", "activate_control_app \"tcp://0.0.0.0:9293?token={}\", auth_token: \"{}\""),
    ("config/puma.rb", "ssl_bind \"0.0.0.0\", 3001, keystore: \"k.jks\", keystore_pass: \"{}\""),
    ("config/puma.rb", "bind \"ssl://0.0.0.0:3002?key=k&cert=c&key_password={}\""),
    ("config/puma.rb", "bind \"tcp://shop:{}@0.0.0.0:3003\""),
    ("config/puma.rb", "bind \"tcp://{}@0.0.0.0:3004\""),
    ("config/puma.rb", "KEY = <<~PEM\n  -----BEGIN PRIVATE KEY-----\n  {}\n  -----END PRIVATE KEY-----\nPEM"),
    ("config/puma.rb", "workers({ \"{}\" => \"{}\" })\nthreads \"{}\""),
    ("config/puma.rb", "on_worker_boot { connect(password: \"{}\", token: :\"{}\") }"),
    ("config/puma.rb", "set_remote_address header: \"X-Client\" # palisade:ignore {} until never"),
    ("config/puma.rb", "x = \"#{ENV['A']}{}\"\nport x\nworkers `echo {}`"),
    ("config/puma.rb", "this is no Ruby ( \"{}\""),
    ("config/database.yml", "production:\n  password: {}\n  url: postgres://shop:{}@db/shop"),
    ("config/database.yml", "production:\n  {}: {}\n  replica: { password: \"{}\" }"),
    ("config/database.yml", "a: [ {}"),
    ("config/cable.yml", "production:\n  url: redis://:{}@redis:6379/1"),
    ("config/storage.yml", "amazon:\n  secret_access_key: \"{}\"\n  access_key_id: {}"),
    ("config/secrets.yml", "production:\n  secret_key_base: {}"),
    ("config/initializers/secret_token.rb", "Shop::Application.config.secret_key_base = \"{}\""),
    ("config/deploy.yml", "registry:\n  password: {}\nenv:\n  clear:\n    API_TOKEN: {}"),
    ("config/deploy/values.production.yaml", "secrets:\n- name: a\n  token: {}"),
    ("config/environments/production.rb", "Rails.application.configure do\n  config.secret_token = \"{}\"\nend"),
    ("fly.toml", "[env]\n  SECRET_KEY_BASE = \"{}\"\n  KEY = '''\n{}==\n'''"),
    ("app.json", "{ \"env\": { \"SECRET_KEY_BASE\": { \"value\": \"{}\" }, \"API_TOKEN\": \"{}\" } }"),
    ("render.yaml", "services:\n- envVars:\n  - key: TOKEN\n    value: {}\n    password: {}"),
    (
        "docker-compose.yml",
        "services:\n  web:\n    environment:\n    - DATABASE_PASSWORD={}\n    - {}\n    command: puma --control-token {} -p {}",
    ),
    ("compose.yaml", "services:\n  web:\n    environment:\n      API_TOKEN: {}\n    ports: [\"{}:3000\"]"),
    ("Procfile", "web: DATABASE_PASSWORD={} bundle exec puma --control-url tcp://0.0.0.0:9293 --control-token={} -b tcp://{}@0.0.0.0:1"),
    (
        "Dockerfile",
        "FROM ruby\nARG RAILS_MASTER_KEY={}\nENV SECRET_KEY_BASE={} A=b\nENV API_TOKEN {}\nUSER {}\nCMD [\"puma\", \"--control-token\", \"{}\"]",
    ),
    ("config/shop.service", "[Service]\nUser=shop\nEnvironment=\"DATABASE_PASSWORD={}\" B={}\nExecStart=/usr/bin/puma --control-token {}"),
    (".kamal/secrets", "RAILS_MASTER_KEY={}\nKEY=\"-----BEGIN PRIVATE KEY-----\n{}=\n{}==\n-----END PRIVATE KEY-----\""),
    (".env", "DATABASE_PASSWORD={}"),
    (".env.production", "export A={}"),
    ("config/master.key", "{}"),
    ("config/credentials/production.key", "{}"),
    ("config/ssl/server.key", "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----"),
    ("tmp/pids/puma.state", "control_auth_token: {}\ncontrol_url: tcp://x:{}@0.0.0.0:1"),
    ("tmp/local_secret.txt", "{}"),
    ("public/.env", "A={}"),
    ("public/dump.sql", "insert into users values ('{}');"),
    ("Gemfile.lock", "GEM\n  remote: https://shop:{}@gems.example/\n  specs:\n    puma (5.6.5)\n    rack (2.2.3)"),
    ("Gemfile", "source \"https://{}@gems.example\"\ngem \"web-console\", git: \"https://{}@git.example\""),
];

const RUBY: &str = "config/puma.rb";

/// A secret of one of the usual kinds.
fn secret(random: &mut fastrand::Rng) -> String {
    let of = |random: &mut fastrand::Rng, alphabet: &[u8], length: usize| -> String {
        (0..length).map(|_| char::from(*random.choice(alphabet).unwrap())).collect()
    };
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    match random.u8(..7) {
        0 => of(random, b"0123456789abcdef", 128),
        1 => of(random, b"0123456789abcdef", 32),
        2 => of(random, LETTERS, 64),
        3 => format!("sk_live_{}", of(random, LETTERS, 24)),
        4 => format!("AKIA{}", of(random, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)),
        5 => format!("ghp_{}", of(random, LETTERS, 36)),
        _ => of(random, b"abcdefghijklmnopqrstuvwxyz", 8) + &of(random, LETTERS, 8),
    }
}

/// The parts of a secret that nobody may see, long enough that no hash in a report has them by chance. Prefixes such as
/// `sk_live_` say its kind and are no part of it.
fn windows(secret: &str) -> impl Iterator<Item = &str> {
    let own = secret.trim_start_matches("sk_live_").trim_start_matches("AKIA").trim_start_matches("ghp_");
    (0..own.len().saturating_sub(9)).map(move |from| &own[from..from + 10])
}

/// Plants by chance; but `only` of those in puma.rb, whole and alone, as one that is no Ruby hides the others.
fn plant(app: &Path, random: &mut fastrand::Rng, only: Option<usize>) -> Vec<String> {
    let mut secrets = Vec::new();
    let mut ruby = 0..;
    for (file, template) in PLANTS {
        let is_only = match only {
            Some(only) if *file == RUBY => {
                if ruby.next() != Some(only) {
                    continue;
                }
                true
            }
            Some(_) | None => false,
        };
        if !is_only && random.u8(..4) > 1 {
            continue;
        }
        let mut text = String::new();
        for (part, index) in template.split("{}").zip(0..) {
            if index > 0 {
                secrets.push(secret(random));
                text.push_str(secrets.last().unwrap());
            }
            text.push_str(part);
        }
        // As it is, cut off in the middle, or after what another plant has left there.
        let before = fs::read_to_string(app.join(file)).unwrap_or_default();
        let whole = if !is_only && random.bool() { format!("{before}\n{text}") } else { text };
        let end = if !is_only && random.u8(..4) == 0 { random.usize(..whole.len()) } else { whole.len() };
        let mode = if random.bool() { "0644" } else { "0666" };
        write(app, &format!("--- {file} {mode}\n{}", &whole[..end]));
        fs::set_permissions(app.join(file), Permissions::from_mode(0o644)).unwrap();
    }
    secrets
}

#[test]
fn no_secret_is_printed_wherever_it_is_planted() {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut planted, mut found) = (0, BTreeSet::new());
    let in_ruby = PLANTS.iter().filter(|(file, _)| *file == RUBY).count();
    for round in 0..in_ruby {
        let app = application(GOOD);
        commit(app.path());
        let mut secrets = plant(app.path(), &mut random, None);
        git(app.path(), &["add", "--force", "."]);
        git(app.path(), &["commit", "--quiet", "--allow-empty", "--message", "y"]);
        secrets.extend(plant(app.path(), &mut random, Some(round)));
        planted += secrets.len();
        let report = audit::run(app.path(), &options());
        found.extend(report.findings.iter().map(|finding| finding.id.name()));
        let mut out = Vec::new();
        for format in [Format::Table, Format::Json, Format::Sarif] {
            report.write(format, &mut out).unwrap();
        }
        let logged: String = report.findings.iter().map(|finding| format!("{finding}\n")).collect();
        let text = String::from_utf8(out).unwrap() + &logged;
        for secret in &secrets {
            for window in windows(secret) {
                let at = text.find(window);
                assert!(at.is_none(), "{window} of {secret} in …{}", &text[at.unwrap().saturating_sub(200)..at.unwrap() + 20]);
            }
        }
    }
    assert!(planted > 400, "{planted}");
    for id in ["S01", "S03", "S04", "S05", "S06", "S08", "S09", "S10", "S11", "S12", "S15", "S17", "E01"] {
        assert!(found.contains(id), "{id} is not among {found:?}");
    }
}
