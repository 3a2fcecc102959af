//! Our reading of `puma.rb` against Puma's own: the same files, loaded by the Puma that is installed.
//!
//! Where our reading claims to know a value, Puma must say the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use palisade::puma::{self, Known, PumaRb};
use serde_json::{Value, json};

/// Puma's own answer for a file.
fn puma_s_own(app: &Path, environment: &[(&str, &str)]) -> Value {
    let script = r#"
        require "puma"
        require "puma/configuration"
        require "json"
        config = Puma::Configuration.new({ config_files: ["config/puma.rb"] })
        config.load
        config.clamp
        o = config.options
        keys = %i[binds workers min_threads max_threads persistent_timeout first_data_timeout worker_shutdown_timeout
                  queue_requests preload_app environment pidfile state log_requests control_url_umask]
        puts JSON[keys.to_h { |key| [key, o[key]] }]
    "#;
    let mut command = Command::new("ruby");
    command.args(["-e", script]).current_dir(app).env_remove("RAILS_ENV").env_remove("RACK_ENV").env_remove("APP_ENV");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    assert!(output.status.success(), "ruby with puma is needed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Each value that we claim to know, beside Puma's.
fn compare(name: &str, ours: &PumaRb, theirs: &Value) {
    let mut checked = 0;
    let mut same = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            assert_eq!(value, theirs[key], "{name}: {key}");
            checked += 1;
        }
    };
    fn number(known: &Known<u32>) -> Option<Value> {
        known.value().map(|value| json!(value))
    }
    same("workers", ours.workers().map(|value| json!(value)));
    same("max_threads", ours.threads().map(|value| json!(value)));
    same("min_threads", ours.threads_min.or_default(ours.defaults.threads_min).map(|value| json!(value)));
    same("environment", ours.environment().map(|value| json!(value)));
    same("persistent_timeout", number(&ours.persistent_timeout));
    same("first_data_timeout", number(&ours.first_data_timeout));
    same("worker_shutdown_timeout", number(&ours.worker_shutdown_timeout));
    same("queue_requests", ours.queue_requests.value().map(|value| json!(value)));
    same("log_requests", ours.log_requests.value().map(|value| json!(value)));
    same("preload_app", ours.preload_app.value().map(|value| json!(value)));
    same("pidfile", ours.pidfile.value().map(|value| json!(value)));
    same("state", ours.state_path.value().map(|value| json!(value)));
    same("control_url_umask", ours.control.value().and_then(|control| control.umask).map(|umask| json!(umask)));
    if !ours.binds_incomplete {
        let urls: Vec<String> = ours.listeners().iter().map(|listener| listener.bind.to_string()).collect();
        let own: Vec<String> =
            theirs["binds"].as_array().unwrap().iter().map(|url| url.as_str().unwrap().split('?').next().unwrap().to_owned()).collect();
        assert_eq!(urls, own, "{name}: binds");
        checked += 1;
    }
    assert!(checked >= 3, "{name}: too little is known to compare");
}

#[test]
fn our_reading_agrees_with_puma_s_own() {
    let environment = [("WEB_CONCURRENCY", "3"), ("RAILS_MAX_THREADS", "7"), ("PORT", "4000"), ("RACK_ENV", "production")];
    for (name, source) in FILES {
        let folder = tempfile::tempdir().unwrap();
        let app = folder.path().canonicalize().unwrap();
        fs::create_dir(app.join("config")).unwrap();
        fs::write(app.join("config/puma.rb"), source).unwrap();
        fs::write(app.join("config/shared.rb"), "threads 2, 4\nfirst_data_timeout 11\n").unwrap();
        let lookup = |key: &str| environment.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned());
        let ours = puma::read_file(&app, &app.join("config/puma.rb"), &lookup).unwrap();
        compare(name, &ours, &puma_s_own(&app, &environment));
    }
}

#[test]
fn without_configuration_the_defaults_are_puma_s() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    fs::write(folder.path().join("config/puma.rb"), "").unwrap();
    let environment = [("MIN_THREADS", "2"), ("PUMA_MAX_THREADS", "9")];
    let lookup = |key: &str| environment.iter().find(|(known, _)| *known == key).map(|(_, value)| (*value).to_owned());
    let ours = puma::read(folder.path(), &lookup).unwrap();
    assert_eq!(ours.threads(), Some(9));
    compare("defaults", &ours, &puma_s_own(folder.path(), &environment));
}

const FILES: &[(&str, &str)] = &[
    (
        "heroku",
        "workers Integer(ENV['WEB_CONCURRENCY'] || 2)\nthreads_count = Integer(ENV['RAILS_MAX_THREADS'] || 5)\nthreads threads_count, threads_count\npreload_app!\nport ENV['PORT'] || 3000\nenvironment ENV['RACK_ENV'] || 'development'\n",
    ),
    (
        "digital ocean",
        "workers 2\nthreads 1, 6\napp_dir = File.expand_path(\"../..\", __FILE__)\nshared_dir = \"#{app_dir}/shared\"\nrails_env = ENV['RAILS_ENV'] || \"production\"\nenvironment rails_env\nbind \"unix://#{shared_dir}/sockets/puma.sock\"\npidfile \"#{shared_dir}/pids/puma.pid\"\nstate_path \"#{shared_dir}/pids/puma.state\"\nactivate_control_app\non_worker_boot do\n  require \"active_record\"\nend\n",
    ),
    (
        "rails 7.0",
        "max_threads_count = ENV.fetch(\"RAILS_MAX_THREADS\") { 5 }\nmin_threads_count = ENV.fetch(\"RAILS_MIN_THREADS\") { max_threads_count }\nthreads min_threads_count, max_threads_count\nport ENV.fetch(\"PORT\") { 3000 }\nenvironment ENV.fetch(\"RAILS_ENV\") { \"development\" }\npidfile ENV.fetch(\"PIDFILE\") { \"tmp/pids/server.pid\" }\n",
    ),
    (
        "branches",
        "if ENV['RACK_ENV'] == 'production'\n  bind 'unix:///tmp/a.sock?umask=0117'\n  queue_requests false\nelse\n  bind 'tcp://127.0.0.1:1'\nend\nworkers 1 unless ENV['WEB_CONCURRENCY'].to_i > 2\nlog_requests false\npersistent_timeout 2 * 30 + 1\n",
    ),
    (
        "loops",
        "dir = File.join(Dir.pwd, 'tmp')\n3.times { |i| bind \"unix://#{dir}/w#{i}.sock\" }\n%w[3001 3002].each { |port| bind \"tcp://127.0.0.1:#{port}\" }\nworkers [ENV.fetch('WEB_CONCURRENCY').to_i, 2].max\n",
    ),
    ("load", "load 'config/shared.rb'\nworker_shutdown_timeout 25\nclear_binds!\nport 9000, '127.0.0.1'\n"),
    (
        "unknown",
        "n = `echo 3`.to_i\nworkers n\nthreads 1, 8\nbind 'tcp://127.0.0.1:1' if n == 3\npidfile File.read('/dev/null')\nstate_path 'x.state'\n",
    ),
    (
        "control",
        "activate_control_app 'unix:///tmp/c.sock', umask: 0o077, auth_token: 'x'\nmax_threads = (ENV['RAILS_MAX_THREADS'] ||= '5').to_i\nthreads(*[1, max_threads]) if false\nthreads 1, max_threads\n",
    ),
];
