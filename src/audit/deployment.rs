//! How an application is started: Dockerfile, Procfile, systemd units, compose files. Read, never run.
//!
//! Threat 4, exposure: these files say which variables Puma sees, which port is published, as whom it runs; and people
//! write secrets into them.

/// A variable that a file sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) line: u32,
}

/// A command that a file starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) text: String,
    pub(super) line: u32,
}

/// A `Dockerfile`; of several stages the last is what runs, but each one's variables may stay in an image.
#[derive(Clone, Debug, Default)]
pub(super) struct Dockerfile {
    /// `ENV` of all stages.
    pub(super) variables: Vec<Variable>,
    /// `ARG` of all stages; the value is empty if none is given.
    pub(super) arguments: Vec<Variable>,
    /// `ENV` of the last stage and of the stages it is built on.
    pub(super) effective: Vec<Variable>,
    pub(super) exposed: Vec<(u16, u32)>,
    /// `USER` of the last stage or a stage it is built on.
    pub(super) user: Option<(String, u32)>,
    /// The last `FROM`.
    pub(super) last_from: Option<u32>,
    /// `COPY` or `ADD` of the whole context.
    pub(super) copies_all: Option<u32>,
    /// `CMD` and `ENTRYPOINT` of the last stage.
    pub(super) commands: Vec<Command>,
}

#[derive(Clone, Debug, Default)]
struct Stage {
    name: String,
    variables: Vec<Variable>,
    user: Option<(String, u32)>,
}

impl Dockerfile {
    pub(super) fn parse(source: &str) -> Self {
        let mut file = Self::default();
        let mut stages: Vec<Stage> = Vec::new();
        for (line, text) in logical_lines(source) {
            let (instruction, rest) = text.split_once(char::is_whitespace).unwrap_or((&text, ""));
            let rest = rest.trim();
            match instruction.to_ascii_uppercase().as_str() {
                "FROM" => {
                    let words: Vec<&str> = rest.split_whitespace().filter(|word| !word.starts_with("--")).collect();
                    let base = words.first().copied().unwrap_or_default();
                    let inherited = stages.iter().rev().find(|stage| stage.name.eq_ignore_ascii_case(base)).cloned().unwrap_or_default();
                    stages.push(Stage { name: words.get(2).map_or_else(String::new, |name| (*name).to_owned()), ..inherited });
                    file.last_from = Some(line);
                    file.exposed.clear();
                    file.commands.clear();
                    file.copies_all = None;
                }
                "ENV" => {
                    let variables = assignments(rest, line, true);
                    file.variables.extend(variables.iter().cloned());
                    if let Some(stage) = stages.last_mut() {
                        stage.variables.extend(variables);
                    }
                }
                "ARG" => file.arguments.extend(assignments(rest, line, false)),
                "EXPOSE" => {
                    let ports = rest.split_whitespace().filter_map(|port| port.split('/').next()?.parse().ok());
                    file.exposed.extend(ports.map(|port| (port, line)));
                }
                "USER" => {
                    if let Some(stage) = stages.last_mut() {
                        stage.user = Some((rest.to_owned(), line));
                    }
                }
                "COPY" | "ADD" => {
                    let from_stage = rest.split_whitespace().any(|word| word.starts_with("--from="));
                    let sources: Vec<&str> = rest.split_whitespace().filter(|word| !word.starts_with("--")).collect();
                    let all = sources.iter().rev().skip(1).any(|source| matches!(*source, "." | "./" | "*" | "./*"));
                    if all && !from_stage && file.copies_all.is_none() {
                        file.copies_all = Some(line);
                    }
                }
                "CMD" | "ENTRYPOINT" => file.commands.push(Command { text: unquoted_array(rest), line }),
                _ => {}
            }
        }
        // A build stage that copies everything leaves it in its image and in the layers that copy from it.
        if file.copies_all.is_none() {
            file.copies_all = copies_all_anywhere(source);
        }
        if let Some(last) = stages.pop() {
            file.effective = last.variables;
            file.user = last.user;
        }
        file
    }
}

fn copies_all_anywhere(source: &str) -> Option<u32> {
    logical_lines(source).into_iter().find_map(|(line, text)| {
        let mut words = text.split_whitespace();
        let copies = words.next().is_some_and(|word| word.eq_ignore_ascii_case("COPY") || word.eq_ignore_ascii_case("ADD"));
        let words: Vec<&str> = words.collect();
        let from_stage = words.iter().any(|word| word.starts_with("--from="));
        let sources: Vec<&&str> = words.iter().filter(|word| !word.starts_with("--")).collect();
        (copies && !from_stage && sources.len() > 1 && sources.first().is_some_and(|first| matches!(**first, "." | "./"))).then_some(line)
    })
}

/// Lines with their continuations joined, without comments; each with its first line's number.
fn logical_lines(source: &str) -> Vec<(u32, String)> {
    let mut lines: Vec<(u32, String)> = Vec::new();
    let mut continued = false;
    for (text, number) in source.lines().zip(1_u32..) {
        let text = text.trim();
        if text.starts_with('#') || text.starts_with(';') || (text.is_empty() && !continued) {
            continue;
        }
        let (part, more) = text.strip_suffix('\\').map_or((text, false), |part| (part, true));
        match lines.last_mut() {
            Some((_, line)) if continued => {
                line.push(' ');
                line.push_str(part);
            }
            _ => lines.push((number, part.to_owned())),
        }
        continued = more;
    }
    lines
}

/// `A=1 B="2 3"`, and the older `A 1` where allowed.
fn assignments(text: &str, line: u32, old_form: bool) -> Vec<Variable> {
    let words = words(text);
    let equals = words.iter().any(|word| word.contains('='));
    if old_form && !equals {
        let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return vec![Variable { name: name.to_owned(), value: value.trim().to_owned(), line }];
    }
    words
        .into_iter()
        .map(|word| {
            let (name, value) = word.split_once('=').map_or((word.as_str(), ""), |(name, value)| (name, value));
            Variable { name: name.to_owned(), value: value.to_owned(), line }
        })
        .collect()
}

/// Words as a shell splits them, quotes removed, nothing expanded.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut started = false;
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                started = true;
            }
            None if c.is_whitespace() => {
                if started || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            None => word.push(c),
        }
    }
    if started || !word.is_empty() {
        words.push(word);
    }
    words
}

/// `["a", "b"]` as `a b`.
fn unquoted_array(text: &str) -> String {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) => inner.split(',').map(|part| part.trim().trim_matches('"')).collect::<Vec<_>>().join(" "),
        None => text.to_owned(),
    }
}

/// `name: command` lines of a Procfile.
pub(super) fn procfile(source: &str) -> Vec<Command> {
    source
        .lines()
        .zip(1_u32..)
        .filter(|(line, _)| !line.trim_start().starts_with('#'))
        .filter_map(|(line, number)| Some(Command { text: line.split_once(':')?.1.trim().to_owned(), line: number }))
        .collect()
}

/// `NAME=value` in front of a command.
pub(super) fn leading_variables(command: &Command) -> Vec<Variable> {
    words(&command.text)
        .into_iter()
        .skip_while(|word| word == "env" || word == "exec")
        .map_while(|word| {
            let (name, value) = word.split_once('=')?;
            let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            named.then(|| Variable { name: name.to_owned(), value: value.to_owned(), line: command.line })
        })
        .collect()
}

/// The value of `--name value` or `--name=value` in a command.
pub(super) fn argument(command: &str, name: &str) -> Option<String> {
    let words = words(command);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if word == name {
            return rest.next().cloned();
        }
        if let Some(value) = word.strip_prefix(name).and_then(|value| value.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// A systemd unit that starts something.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    pub(super) variables: Vec<Variable>,
    pub(super) commands: Vec<Command>,
    pub(super) user: Option<(String, u32)>,
    pub(super) dynamic_user: bool,
    /// The line of `[Service]`.
    pub(super) service: Option<u32>,
}

impl Unit {
    pub(super) fn parse(source: &str) -> Self {
        let mut unit = Self::default();
        for (line, text) in logical_lines(source) {
            if text == "[Service]" {
                unit.service = Some(line);
            }
            let Some((key, value)) = text.split_once('=') else { continue };
            let value = value.trim();
            match key.trim() {
                "Environment" => {
                    unit.variables.extend(words(value).into_iter().filter_map(|word| {
                        let (name, value) = word.split_once('=')?;
                        Some(Variable { name: name.to_owned(), value: value.to_owned(), line })
                    }));
                }
                "ExecStart" => {
                    unit.commands.push(Command { text: value.trim_start_matches(['-', '@', ':', '+', '!']).to_owned(), line });
                }
                "User" => unit.user = Some((value.to_owned(), line)),
                "DynamicUser" => unit.dynamic_user = matches!(value, "yes" | "true" | "1" | "on"),
                _ => {}
            }
        }
        unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_inherits_what_it_is_built_on() {
        let source = "FROM ruby AS base\nENV RAILS_ENV=\"production\" \\\n    A=1\nFROM base AS build\nUSER root\nCOPY . .\nFROM base\nCOPY --from=build /rails /rails\nUSER 1000:1000\nEXPOSE 80/tcp\nCMD [\"./bin/thrust\", \"./bin/rails\", \"server\"]\n";
        let file = Dockerfile::parse(source);
        let names: Vec<_> = file.effective.iter().map(|variable| (variable.name.as_str(), variable.value.as_str())).collect();
        assert_eq!(names, [("RAILS_ENV", "production"), ("A", "1")]);
        assert_eq!(file.user, Some(("1000:1000".into(), 9)));
        assert_eq!((file.copies_all, file.exposed), (Some(6), vec![(80, 10)]));
        assert_eq!(file.commands[0].text, "./bin/thrust ./bin/rails server");
    }

    #[test]
    fn a_unit_is_read_with_quotes_and_continuations() {
        let unit = Unit::parse("[Service]\nUser=app\nEnvironment=\"A=1 2\" B=3\nExecStart=/usr/bin/puma \\\n  -C config/puma.rb\n");
        assert_eq!(unit.variables.iter().map(|v| v.value.as_str()).collect::<Vec<_>>(), ["1 2", "3"]);
        assert_eq!(unit.commands[0].line, 4);
        assert_eq!(argument(&unit.commands[0].text, "-C"), Some("config/puma.rb".into()));
    }

    #[test]
    fn variables_before_a_command_are_its_environment() {
        let commands = procfile("web: RAILS_ENV=production TOKEN='a b' bundle exec puma -p 3000\n# x: y\n");
        let variables = leading_variables(&commands[0]);
        assert_eq!(
            variables.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect::<Vec<_>>(),
            [("RAILS_ENV", "production"), ("TOKEN", "a b")]
        );
    }
}
