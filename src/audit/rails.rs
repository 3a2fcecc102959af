//! R05 to R10: Rails' own switches, as its configuration files say them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::application::Application;
use super::checks::Id;
use super::yaml;
use crate::puma::evaluate;
use crate::puma::puma_rb::Methods;
use crate::puma::ruby::{Call, Expression, Kind};
use crate::puma::versions::{Repair, Version};

pub(super) fn check(app: &mut Application<'_>) {
    capacity(app);
    if let Some(production) = app.ruby(PRODUCTION) {
        transport(app, &production);
        send_file(app, PRODUCTION, &production);
        trusted_proxies(app, PRODUCTION, &production);
        consider_local(app, &production);
    }
    if let Some(application) = app.ruby("config/application.rb") {
        send_file(app, "config/application.rb", &application);
        trusted_proxies(app, "config/application.rb", &application);
    }
    laxity(app);
    debugging_gems(app);
    dashboards(app);
}

/// R05.
fn capacity(app: &mut Application<'_>) {
    let file = app.puma_path();
    if app.puma.path.is_some() {
        for (name, known, line) in
            [("workers", app.puma.workers(), app.puma.workers.line()), ("threads", app.puma.threads(), app.puma.threads_max.line())]
        {
            if known.is_none() {
                app.find(Id::R05, &file, line, format!("the number of {name} is not known without running the file"));
            }
        }
    }
    let Some(threads) = app.puma.threads() else { return };
    let path = "config/database.yml";
    let source = app.text(path).unwrap_or_default();
    for document in app.yaml(path) {
        let section = |name: &str| document.get(name).and_then(|section| section.get("pool").or_else(|| section.get("max_connections")));
        let Some(pool) = section("production").or_else(|| section("default")).or_else(|| document.get("pool")) else { continue };
        let written = pool.scalar().unwrap_or_default();
        let value = if written == yaml::ERB { erb_value(app, &source, pool.line) } else { written.parse().ok() };
        if let Some(value) = value.filter(|value| *value < i64::from(threads)) {
            app.find(Id::R05, path, Some(pool.line), format!("{value} connections for {threads} threads"));
        }
    }
}

/// The value of the one `<%= … %>` on a line, where it can be known.
fn erb_value(app: &Application<'_>, source: &str, line: u32) -> Option<i64> {
    let line = source.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let (_, expression) = line.split_once("<%=")?;
    let (expression, _) = expression.split_once("%>")?;
    let environment = |name: &str| app.environment.get(name).cloned();
    evaluate::expression(expression, &environment).integer()
}

/// R06.
fn transport(app: &mut Application<'_>, production: &Expression) {
    let force = setting(production, &["config", "force_ssl"]);
    match force {
        None => app.find(Id::R06, PRODUCTION, None, "config.force_ssl is not set"),
        Some((line, value)) if value.kind == Kind::False => app.find(Id::R06, PRODUCTION, Some(line), "config.force_ssl = false"),
        Some(_) => {}
    }
    let assumes = setting(production, &["config", "assume_ssl"]);
    if let Some((line, value)) = assumes
        && value.kind == Kind::False
    {
        app.find(Id::R06, PRODUCTION, Some(line), "config.assume_ssl = false behind a proxy that does TLS");
    }
    for (line, call) in production.calls() {
        let hosts = call.receiver.as_deref().is_some_and(|receiver| path_of(receiver) == ["config", "hosts"]);
        let cleared = hosts && call.name == "clear";
        let assigned = call.name == "hosts="
            && call.arguments.first().is_some_and(|value| value.kind == Kind::Nil || value.kind == Kind::Array(Vec::new()));
        if cleared || assigned {
            app.find(Id::R06, PRODUCTION, Some(line), "config.hosts is emptied");
        }
    }
}

/// R07.
fn trusted_proxies(app: &mut Application<'_>, path: &str, program: &Expression) {
    let Some((line, value)) = setting(program, &["config", "action_dispatch", "trusted_proxies"]) else { return };
    let mut ranges = Vec::new();
    value.walk(&mut |part| {
        if let Kind::Str(text) = &part.kind {
            ranges.push(text.clone());
        }
    });
    let nets: Vec<IpNet> = ranges.iter().filter_map(|range| range.parse().ok().or_else(|| range.parse().ok().map(IpAddr::into))).collect();
    if nets.iter().any(|net| net.prefix_len() == 0) {
        app.find(Id::R07, path, Some(line), "every address is trusted");
        return;
    }
    // A list with parts that are not literal, such as Rails' own ranges, cannot be judged.
    let Kind::Array(items) = &value.kind else { return };
    if ranges.len() != items.len() || nets.len() != ranges.len() {
        return;
    }
    let proxy = app.options.proxy.address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    if !nets.iter().any(|net| net.contains(&proxy)) {
        app.find(Id::R07, path, Some(line), format!("the proxy's address {proxy} is not trusted: every client will have it"));
    }
}

/// R08.
fn send_file(app: &mut Application<'_>, path: &str, program: &Expression) {
    let Some((line, value)) = setting(program, &["config", "action_dispatch", "x_sendfile_header"]) else { return };
    let accel = value.literal().is_some_and(|value| value.eq_ignore_ascii_case("X-Accel-Redirect"));
    if let Some(rack) = app.lock.version("rack").filter(|rack| accel && !SENDFILE.fixed_in(rack)) {
        app.find(Id::R08, path, Some(line), format!("X-Accel-Redirect with rack {rack}"));
    }
}

/// R09.
fn laxity(app: &mut Application<'_>) {
    let file = app.puma_path();
    if app.puma.supported_http_methods.value() == Some(&Methods::Any) {
        app.find(Id::R09, &file, app.puma.supported_http_methods.line(), "supported_http_methods :any");
    }
    let line = app.puma.allow_underscore_headers.line();
    let has_switch = app.puma_version().is_some_and(|version| *version >= Version::from("8.1"));
    match app.puma.allow_underscore_headers.value() {
        Some(true) => app.find(Id::R09, &file, line, "allow_underscore_headers true"),
        None if line.is_none() && has_switch => app.find(Id::R09, &file, None, "allow_underscore_headers is left at true"),
        Some(false) | None => {}
    }
}

/// R10: gems that are installed in production.
fn debugging_gems(app: &mut Application<'_>) {
    let Some(gemfile) = app.ruby("Gemfile") else { return };
    let mut found = Vec::new();
    gems(&gemfile, false, &mut found);
    for (name, line) in found {
        app.find(Id::R10, "Gemfile", Some(line), format!("the gem {name} is in every environment, production included"));
    }
}

/// Walk a Gemfile; `safe` inside groups that production does not have.
fn gems(expression: &Expression, safe: bool, found: &mut Vec<(String, u32)>) {
    if let Kind::Call(call) = &expression.kind {
        if call.name == "gem" && !safe && !is_development(call) {
            let name = call.arguments.first().and_then(Expression::literal);
            found.extend(name.filter(|name| DEBUGGING.contains(name)).map(|name| (name.to_owned(), expression.line)));
        }
        if let Some(block) = &call.block {
            let group = call.name == "group" && !call.arguments.iter().filter_map(Expression::literal).any(|name| name == "production");
            gems(&block.body, safe || group, found);
        }
    } else if let Kind::Sequence(parts) | Kind::Opaque(_, parts) = &expression.kind {
        parts.iter().for_each(|part| gems(part, safe, found));
    } else if let Kind::If { then, otherwise, .. } = &expression.kind {
        gems(then, safe, found);
        gems(otherwise, safe, found);
    }
}

/// `gem "x", group: :development`.
fn is_development(call: &Call) -> bool {
    let Some(group) = call.option("group").or_else(|| call.option("groups")) else { return false };
    let mut production = false;
    group.walk(&mut |part| production |= matches!(part.literal(), Some("production" | "default")));
    !production
}

fn consider_local(app: &mut Application<'_>, production: &Expression) {
    if let Some((line, value)) = setting(production, &["config", "consider_all_requests_local"])
        && value.kind == Kind::True
    {
        app.find(Id::R10, PRODUCTION, Some(line), "config.consider_all_requests_local = true shows backtraces to everyone");
    }
}

/// R10: dashboards mounted without anything around them.
fn dashboards(app: &mut Application<'_>) {
    let path = "config/routes.rb";
    let Some(routes) = app.ruby(path) else { return };
    let mut found = Vec::new();
    mounts(&routes, false, &mut found);
    for (name, line) in found {
        app.suspect(Id::R10, path, Some(line), format!("{name} is mounted without a constraint that can be seen here"));
    }
}

fn mounts(expression: &Expression, guarded: bool, found: &mut Vec<(String, u32)>) {
    match &expression.kind {
        Kind::Call(call) => {
            if call.name == "mount" && !guarded && call.option("constraints").is_none() {
                let mut name = None;
                for argument in &call.arguments {
                    argument.walk(&mut |part| {
                        if let Kind::Constant(constant) = &part.kind
                            && DASHBOARDS.contains(&constant.as_str())
                        {
                            name = Some(constant.clone());
                        }
                    });
                }
                found.extend(name.map(|name| (name, expression.line)));
            }
            if let Some(block) = &call.block {
                let guards = matches!(call.name.as_str(), "authenticate" | "authenticated" | "constraints" | "devise_scope");
                mounts(&block.body, guarded || guards, found);
            }
        }
        Kind::Sequence(parts) | Kind::Opaque(_, parts) => parts.iter().for_each(|part| mounts(part, guarded, found)),
        // Behind `if Rails.env.development?` or anything else that cannot be known.
        Kind::If { then, otherwise, .. } => {
            mounts(then, true, found);
            mounts(otherwise, true, found);
        }
        Kind::Nil
        | Kind::True
        | Kind::False
        | Kind::Int(_)
        | Kind::Float(_)
        | Kind::Str(_)
        | Kind::Sym(_)
        | Kind::Interpolated(_)
        | Kind::Array(_)
        | Kind::Hash(_)
        | Kind::File
        | Kind::Local(_)
        | Kind::AssignLocal(..)
        | Kind::Constant(_)
        | Kind::AssignConstant(..)
        | Kind::OrAssign(..)
        | Kind::And(..)
        | Kind::Or(..) => {}
    }
}

/// The last value assigned to `config.a.b`, with its line.
fn setting<'e>(program: &'e Expression, path: &[&str]) -> Option<(u32, &'e Expression)> {
    let (last, outer) = path.split_last()?;
    let setter = format!("{last}=");
    program
        .calls()
        .into_iter()
        .filter(|(_, call)| call.name == setter && call.receiver.as_deref().is_some_and(|receiver| path_of(receiver) == outer))
        .filter_map(|(line, call)| call.arguments.first().map(|value| (line, value)))
        .next_back()
}

/// `config.action_dispatch` as names.
fn path_of(expression: &Expression) -> Vec<&str> {
    let Kind::Call(call) = &expression.kind else { return expression.name().into_iter().collect() };
    let mut path = call.receiver.as_deref().map(path_of).unwrap_or_default();
    path.push(&call.name);
    path
}

const PRODUCTION: &str = "config/environments/production.rb";

const SENDFILE: Repair = Repair { id: "CVE-2025-61780, CVE-2026-34830", since: "", fixed: &["2.2.23", "3.1.21", "3.2.6"] };

const DEBUGGING: &[&str] =
    &["web-console", "better_errors", "binding_of_caller", "rack-mini-profiler", "pry-rescue", "peek", "rails-footnotes", "meta_request"];

const DASHBOARDS: &[&str] = &[
    "Sidekiq::Web",
    "GoodJob::Engine",
    "MissionControl::Jobs::Engine",
    "Resque::Server",
    "PgHero::Engine",
    "Blazer::Engine",
    "Flipper::UI",
    "SolidErrors::Engine",
    "RailsAdmin::Engine",
    "Coverband::Reporters::Web",
    "Rswag::Ui::Engine",
    "GraphiQL::Rails::Engine",
    "LetterOpenerWeb::Engine",
];
