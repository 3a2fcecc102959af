use std::collections::HashMap;
use std::fs;

use super::*;

fn read_with(source: &str, environment: &[(&str, &str)]) -> PumaRb {
    let app = tempfile::tempdir().unwrap();
    fs::create_dir(app.path().join("config")).unwrap();
    fs::write(app.path().join("config/puma.rb"), source).unwrap();
    let environment: HashMap<String, String> = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    read(app.path(), &|name| environment.get(name).cloned()).unwrap()
}

fn binds(puma: &PumaRb) -> Vec<String> {
    puma.binds.iter().map(|listener| listener.bind.to_string()).collect()
}

#[test]
fn the_file_of_rails_7_0_is_fully_known() {
    let source = r#"
max_threads_count = ENV.fetch("RAILS_MAX_THREADS") { 5 }
min_threads_count = ENV.fetch("RAILS_MIN_THREADS") { max_threads_count }
threads min_threads_count, max_threads_count
worker_timeout 3600 if ENV.fetch("RAILS_ENV", "development") == "development"
port ENV.fetch("PORT") { 3000 }
environment ENV.fetch("RAILS_ENV") { "development" }
pidfile ENV.fetch("PIDFILE") { "tmp/pids/server.pid" }
plugin :tmp_restart
"#;
    let puma = read_with(source, &[("RAILS_MAX_THREADS", "9"), ("RAILS_ENV", "production")]);
    assert_eq!(puma.unknowns, []);
    assert_eq!((puma.threads_min, puma.threads_max), (Known::Value(9, 4), Known::Value(9, 4)));
    assert_eq!(puma.environment, Known::Value("production".into(), 7));
    assert_eq!(puma.plugins, [("tmp_restart".into(), 9)]);
    assert_eq!(puma.binds, [Listener { bind: Bind::Tcp { host: "0.0.0.0".into(), port: 3000 }, line: 6 }]);
}

#[test]
fn the_file_of_rails_8_is_known_but_for_what_runs() {
    let source = r#"
threads_count = ENV.fetch("RAILS_MAX_THREADS", 3)
threads threads_count, threads_count
port ENV.fetch("PORT", 3000)
plugin :tmp_restart
plugin :solid_queue if ENV["SOLID_QUEUE_IN_PUMA"]
pidfile ENV["PIDFILE"] if ENV["PIDFILE"]
"#;
    let puma = read_with(source, &[("WEB_CONCURRENCY", "4")]);
    assert_eq!(puma.unknowns, []);
    assert_eq!(puma.slots(), Some(12));
    assert_eq!(puma.plugins.len(), 1);
    assert!(puma.pidfile.is_default());
}

#[test]
fn sockets_for_each_worker_are_found() {
    let source = r##"
require "puma/plugin"
dir = File.expand_path("../tmp/sockets", __dir__)
n = Integer(ENV.fetch("WEB_CONCURRENCY", 2)); workers n
n.times { |i| bind "unix://#{dir}/w#{i}.sock?umask=0077" }
keep = Class.new(Puma::Plugin) { define_method(:start) { |l| $worker_binder = l.binder } }
Puma::Plugins.register "per_worker_socket", keep
plugin "per_worker_socket"
before_worker_boot { |i| $worker_binder.ios.select! { |io| io.local_address.unix_path.end_with?("/w#{i}.sock") } }
"##;
    let puma = read_with(source, &[("WEB_CONCURRENCY", "3")]);
    assert_eq!(puma.workers(), Some(3));
    assert_eq!(puma.binds.len(), 3);
    assert!(binds(&puma)[2].ends_with("/tmp/sockets/w2.sock"), "{:?}", binds(&puma));
    assert_eq!(puma.binds[0].bind.socket_mode(), Some(0o700));
    assert!(!puma.binds_incomplete);
}

#[test]
fn the_evaluator_knows_the_ruby_of_configuration_files() {
    for (expression, expected) in [
        ("3", Some(3)),
        ("Integer('7')", Some(7)),
        ("ENV['N'].to_i", Some(6)),
        ("ENV.fetch('N', 2).to_i * 2 + 1", Some(13)),
        ("(ENV['MISSING'] || 4).to_i", Some(4)),
        ("ENV['N'] ? 1 : 2", Some(1)),
        ("ENV['MISSING'] && 1 || 8", Some(8)),
        ("[ENV['N'].to_i, 9].max", Some(9)),
        ("(ENV['N'].to_i * 1.5).to_i", Some(9)),
        ("n = 2; n += 3; n", Some(5)),
        ("N ||= 4; N", Some(4)),
        ("ENV['X'] = '5'; ENV['X']", Some(5)),
        ("ENV['MISSING'] ||= '3'; ENV.fetch('MISSING')", Some(3)),
        ("if ENV['N'] == '6' then 1 else 2 end", Some(1)),
        ("unless ENV.key?('N') then 1 else 2 end", Some(2)),
        ("x = 0; [1, 2, 3].each { |i| x += i }; x", Some(6)),
        ("x = 0; 1.upto(3) { |i| x += i }; x", Some(6)),
        ("`nproc`.to_i", None),
        ("Rails.application.config.x", None),
        ("File.read('/etc/hostname').to_i", None),
        ("rand(5)", None),
        ("ENV.fetch('MISSING')", None),
        ("Concurrent.physical_processor_count", None),
        ("$workers", None),
        ("5.minutes", None),
    ] {
        let puma = read_with(&format!("workers begin; {expression}; end"), &[("N", "6")]);
        assert_eq!(puma.workers.value().copied(), expected, "{expression}");
        assert_eq!(puma.unknowns.is_empty(), expected.is_some(), "{expression}: {:?}", puma.unknowns);
    }
}

#[test]
fn what_depends_on_the_unknown_is_unknown_with_its_line() {
    let source = "threads 5, 5\nn = `nproc`.to_i\nif n > 2\n  workers 4\n  bind 'tcp://127.0.0.1:1'\nend\nthreads 2, n\n";
    let puma = read_with(source, &[]);
    assert_eq!(puma.workers(), None);
    assert_eq!(puma.workers.line(), Some(4));
    assert!(puma.binds_incomplete);
    assert_eq!(puma.binds, []);
    assert_eq!(puma.threads_min, Known::Value(2, 7));
    assert_eq!(puma.threads(), None);
    assert_eq!(puma.slots(), None);
    let lines: Vec<u32> = puma.unknowns.iter().map(|unknown| unknown.line).collect();
    assert_eq!(lines, [4, 5, 7]);
}

#[test]
fn nothing_is_executed() {
    let app = tempfile::tempdir().unwrap();
    let proof = app.path().join("proof");
    fs::create_dir(app.path().join("config")).unwrap();
    let source = format!(
        "`touch {0}`\nsystem('touch {0}')\nFile.write('{0}', '')\nat_exit {{ File.write('{0}', '') }}\nworkers 2\n",
        proof.display()
    );
    fs::write(app.path().join("config/puma.rb"), source).unwrap();
    let puma = read(app.path(), &|_| None).unwrap();
    assert_eq!(puma.workers, Known::Value(2, 5));
    assert!(!proof.exists());
}

#[test]
fn load_has_no_effect_as_in_puma_and_is_said_so() {
    let app = tempfile::tempdir().unwrap();
    fs::create_dir(app.path().join("config")).unwrap();
    fs::write(app.path().join("config/puma.rb"), "load 'config/shared.rb'\nload __FILE__\nworkers 2\n").unwrap();
    fs::write(app.path().join("config/shared.rb"), "threads 1, 3\n").unwrap();
    let puma = read(app.path(), &|_| None).unwrap();
    assert_eq!(puma.slots(), Some(10));
    assert_eq!(puma.programs.len(), 3);
    assert_eq!(puma.unknowns.iter().map(|unknown| unknown.line).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn code_that_could_set_anything_is_said() {
    for source in ["instance_eval File.read('config/shared.rb')", "send(:workers, 9)", "eval 'bind \"x\"'"] {
        let puma = read_with(&format!("{source}\nthreads 1, 3\n"), &[]);
        assert!(puma.binds_incomplete && puma.unknowns.len() == 1, "{source}: {:?}", puma.unknowns);
    }
    assert_eq!(read_with("self.workers 4", &[]).workers, Known::Value(4, 1));
}

#[test]
fn the_file_of_the_environment_comes_first() {
    let app = tempfile::tempdir().unwrap();
    fs::create_dir_all(app.path().join("config/puma")).unwrap();
    fs::write(app.path().join("config/puma.rb"), "workers 1").unwrap();
    fs::write(app.path().join("config/puma/production.rb"), "workers 2").unwrap();
    let environment = |name: &str| (name == "RACK_ENV").then(|| "production".to_owned());
    assert_eq!(read(app.path(), &environment).unwrap().workers(), Some(2));
    assert_eq!(read(app.path(), &|_| None).unwrap().workers(), Some(1));
    let other = Path::new("config/puma.rb");
    assert_eq!(read_file(app.path(), other, &environment).unwrap().workers(), Some(1));
}

#[test]
fn without_a_file_puma_listens_everywhere() {
    let app = tempfile::tempdir().unwrap();
    let puma = read(app.path(), &|_| None).unwrap();
    assert_eq!(puma.path, None);
    assert_eq!(puma.listeners(), [Listener { bind: default_bind(), line: 0 }]);
    assert_eq!(puma.slots(), Some(5));
}

#[test]
fn the_control_app_is_read_without_keeping_its_token() {
    let puma = read_with("activate_control_app 'unix:///run/ctl.sock', auth_token: 'hunter2hunter2', umask: 0o077, data_only: true", &[]);
    let control = puma.control.value().unwrap();
    assert_eq!((control.token, control.data_only, control.umask), (Token::Literal, true, Some(0o077)));
    for (options, token) in [
        ("", Token::Random),
        (", { no_token: true }", Token::None),
        (", { auth_token: 'none' }", Token::None),
        (", { auth_token: ENV['T'] }", Token::Random),
        (", { auth_token: ENV.fetch('SET') }", Token::Elsewhere),
        (", { auth_token: ENV.fetch('MISSING') }", Token::Elsewhere),
    ] {
        let puma = read_with(&format!("activate_control_app 'auto'{options}"), &[("SET", "abc")]);
        let control = puma.control.value().unwrap();
        assert_eq!((control.url.clone(), control.token), (ControlUrl::Auto, token), "{options}");
    }
}

#[test]
fn the_remote_address_is_read_in_all_its_forms() {
    for (argument, expected) in [
        (":socket", RemoteAddress::Socket),
        (":localhost", RemoteAddress::Fixed("127.0.0.1".into())),
        ("'10.0.0.1'", RemoteAddress::Fixed("10.0.0.1".into())),
        ("header: 'X-Real-IP'", RemoteAddress::Header("X-Real-IP".into())),
        ("proxy_protocol: :v1", RemoteAddress::ProxyProtocol("v1".into())),
    ] {
        let puma = read_with(&format!("set_remote_address {argument}"), &[]);
        assert_eq!(puma.set_remote_address.value(), Some(&expected), "{argument}");
    }
}

#[test]
fn a_broken_file_is_an_error_with_its_line() {
    let app = tempfile::tempdir().unwrap();
    fs::create_dir(app.path().join("config")).unwrap();
    fs::write(app.path().join("config/puma.rb"), "workers 2\nthreads(\n").unwrap();
    let error = read(app.path(), &|_| None).unwrap_err().to_string();
    assert!(error.ends_with("config/puma.rb: line 3 is not Ruby 3.1 syntax"), "{error}");
}
