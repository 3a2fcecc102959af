//! From the parser's tree to ours, on a thread of its own.
//!
//! The parser's tree is as deep as the file wants it to be and is dropped recursively; what leaves this module has a
//! bounded depth.

use std::path::Path;
use std::thread;

use lib_ruby_parser::{ErrorLevel, Node, Parser, ParserOptions};

use super::{Block, Call, Expression, Kind, ParseError};

/// Parse Ruby source.
///
/// # Errors
/// When the source is too large or not Ruby.
pub fn parse(path: &Path, source: &[u8]) -> Result<Expression, ParseError> {
    if source.len() > LIMIT {
        return Err(ParseError::TooLarge { limit: LIMIT });
    }
    let name = path.display().to_string();
    let source = source.to_vec();
    thread::Builder::new()
        .name("ruby-parser".to_owned())
        .stack_size(STACK)
        .spawn(move || parse_here(name, source))
        .and_then(|thread| thread.join().map_err(|_| std::io::Error::other("the parser panicked")))
        .map_err(|_| ParseError::Parser)?
}

fn parse_here(name: String, source: Vec<u8>) -> Result<Expression, ParseError> {
    let lines = Lines::of(&source);
    let options = ParserOptions { buffer_name: name, record_tokens: false, ..ParserOptions::default() };
    let result = Parser::new(source, options).do_parse();
    if let Some(error) = result.diagnostics.iter().find(|diagnostic| diagnostic.level == ErrorLevel::Error) {
        return Err(ParseError::Syntax { line: lines.at(error.loc.begin) });
    }
    Ok(match result.ast {
        Some(node) => Lower { lines: &lines }.node(&node, 0),
        None => Expression { line: 1, kind: Kind::Sequence(Vec::new()) },
    })
}

/// Byte offsets at which lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(source: &[u8]) -> Self {
        Self(memchr::memchr_iter(b'\n', source).collect())
    }

    fn at(&self, offset: usize) -> u32 {
        let before = self.0.partition_point(|&newline| newline < offset);
        u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// From the parser's tree to ours.
struct Lower<'l> {
    lines: &'l Lines,
}

impl Lower<'_> {
    fn node(&self, node: &Node, depth: usize) -> Expression {
        let line = self.lines.at(node.expression().begin);
        let kind = if depth >= DEPTH { Kind::Opaque("an expression nested too deeply", Vec::new()) } else { self.kind(node, depth + 1) };
        Expression { line, kind }
    }

    fn nodes(&self, nodes: &[Node], depth: usize) -> Vec<Expression> {
        nodes.iter().map(|node| self.node(node, depth)).collect()
    }

    fn boxed(&self, node: &Node, depth: usize) -> Box<Expression> {
        Box::new(self.node(node, depth))
    }

    fn optional(&self, node: Option<&Node>, depth: usize) -> Box<Expression> {
        node.map_or_else(|| Box::new(Expression { line: 0, kind: Kind::Sequence(Vec::new()) }), |node| self.boxed(node, depth))
    }

    fn several<'n>(&self, parts: impl IntoIterator<Item = Option<&'n Node>>, depth: usize) -> Vec<Expression> {
        parts.into_iter().flatten().map(|node| self.node(node, depth)).collect()
    }

    // The parser's enum has 124 variants and is not ours: what is not named here is opaque on purpose.
    #[expect(clippy::wildcard_enum_match_arm)]
    fn kind(&self, node: &Node, depth: usize) -> Kind {
        match node {
            Node::Nil(_) => Kind::Nil,
            Node::True(_) => Kind::True,
            Node::False(_) => Kind::False,
            Node::Int(n) => integer(&n.value).map_or(Kind::Opaque("a large integer", Vec::new()), Kind::Int),
            Node::Float(n) => n.value.replace('_', "").parse().map_or(Kind::Opaque("a number", Vec::new()), Kind::Float),
            Node::Str(n) => Kind::Str(n.value.to_string_lossy()),
            Node::Sym(n) => Kind::Sym(n.name.to_string_lossy()),
            Node::Dstr(n) => joined(self.nodes(&n.parts, depth)),
            Node::Dsym(n) => joined(self.nodes(&n.parts, depth)),
            Node::Heredoc(n) => joined(self.nodes(&n.parts, depth)),
            Node::Array(n) => Kind::Array(self.nodes(&n.elements, depth)),
            Node::Hash(n) => self.hash(&n.pairs, depth),
            Node::Kwargs(n) => self.hash(&n.pairs, depth),
            Node::File(_) => Kind::File,
            Node::Lvar(n) => Kind::Local(n.name.clone()),
            Node::Lvasgn(n) => Kind::AssignLocal(n.name.clone(), self.optional(n.value.as_deref(), depth)),
            Node::Const(n) => Kind::Constant(constant(n.scope.as_deref(), &n.name)),
            Node::Casgn(n) => Kind::AssignConstant(constant(n.scope.as_deref(), &n.name), self.optional(n.value.as_deref(), depth)),
            Node::OrAsgn(n) => Kind::OrAssign(Box::new(self.read_of(&n.recv, depth)), self.boxed(&n.value, depth)),
            Node::OpAsgn(n) => self.operator_assignment(n, depth),
            Node::Send(n) => self.call(n.recv.as_deref(), &n.method_name, &n.args, depth),
            Node::CSend(n) => Kind::Opaque("`&.`", {
                let mut parts = vec![self.node(&n.recv, depth)];
                parts.extend(self.nodes(&n.args, depth));
                parts
            }),
            Node::Index(n) => self.call(Some(&n.recv), "[]", &n.indexes, depth),
            Node::IndexAsgn(n) => {
                let mut arguments = self.nodes(&n.indexes, depth);
                arguments.extend(n.value.as_deref().map(|value| self.node(value, depth)));
                Kind::Call(Call { receiver: Some(self.boxed(&n.recv, depth)), name: "[]=".to_owned(), arguments, block: None })
            }
            Node::Block(n) => self.with_block(&n.call, parameters(n.args.as_deref()), n.body.as_deref(), depth),
            Node::Numblock(n) => {
                let names = (1..=n.numargs).map(|number| format!("_{number}")).collect();
                self.with_block(&n.call, names, Some(&n.body), depth)
            }
            Node::If(n) => self.branch(&n.cond, n.if_true.as_deref(), n.if_false.as_deref(), depth),
            Node::IfMod(n) => self.branch(&n.cond, n.if_true.as_deref(), n.if_false.as_deref(), depth),
            Node::IfTernary(n) => self.branch(&n.cond, Some(&n.if_true), Some(&n.if_false), depth),
            Node::And(n) => Kind::And(self.boxed(&n.lhs, depth), self.boxed(&n.rhs, depth)),
            Node::Or(n) => Kind::Or(self.boxed(&n.lhs, depth), self.boxed(&n.rhs, depth)),
            Node::Begin(n) => Kind::Sequence(self.nodes(&n.statements, depth)),
            Node::KwBegin(n) => Kind::Sequence(self.nodes(&n.statements, depth)),
            Node::Module(n) => Kind::Opaque("a module", self.several([n.body.as_deref()], depth)),
            Node::Class(n) => Kind::Opaque("a class", self.several([n.body.as_deref()], depth)),
            Node::SClass(n) => Kind::Opaque("a class", self.several([n.body.as_deref()], depth)),
            Node::Def(n) => Kind::Opaque("a method definition", self.several([n.body.as_deref()], depth)),
            Node::Defs(n) => Kind::Opaque("a method definition", self.several([n.body.as_deref()], depth)),
            Node::Rescue(n) => {
                let mut parts = self.several([n.body.as_deref(), n.else_.as_deref()], depth);
                parts.extend(self.nodes(&n.rescue_bodies, depth));
                Kind::Opaque("`rescue`", parts)
            }
            Node::RescueBody(n) => Kind::Opaque("`rescue`", self.several([n.body.as_deref()], depth)),
            Node::Ensure(n) => Kind::Opaque("`ensure`", self.several([n.body.as_deref(), n.ensure.as_deref()], depth)),
            Node::Case(n) => {
                let mut parts = self.several([n.expr.as_deref(), n.else_body.as_deref()], depth);
                parts.extend(self.nodes(&n.when_bodies, depth));
                Kind::Opaque("`case`", parts)
            }
            Node::When(n) => {
                let mut parts = self.nodes(&n.patterns, depth);
                parts.extend(self.several([n.body.as_deref()], depth));
                Kind::Opaque("`when`", parts)
            }
            Node::While(n) => Kind::Opaque("`while`", self.several([Some(&*n.cond), n.body.as_deref()], depth)),
            Node::Until(n) => Kind::Opaque("`until`", self.several([Some(&*n.cond), n.body.as_deref()], depth)),
            Node::For(n) => Kind::Opaque("`for`", self.several([n.body.as_deref()], depth)),
            Node::Ivasgn(n) => Kind::Opaque("an instance variable", self.several([n.value.as_deref()], depth)),
            Node::Gvasgn(n) => Kind::Opaque("a global variable", self.several([n.value.as_deref()], depth)),
            Node::Irange(n) => Kind::Opaque("a range", self.several([n.left.as_deref(), n.right.as_deref()], depth)),
            Node::Erange(n) => Kind::Opaque("a range", self.several([n.left.as_deref(), n.right.as_deref()], depth)),
            Node::Regexp(n) => Kind::Opaque("a regular expression", self.nodes(&n.parts, depth)),
            Node::Splat(n) => Kind::Opaque("a splat", self.several([n.value.as_deref()], depth)),
            Node::BlockPass(n) => Kind::Opaque("a block argument", self.several([n.value.as_deref()], depth)),
            Node::Return(n) => Kind::Opaque("`return`", self.nodes(&n.args, depth)),
            Node::Xstr(_) | Node::XHeredoc(_) => Kind::Opaque("the output of a command", Vec::new()),
            Node::Ivar(_) => Kind::Opaque("an instance variable", Vec::new()),
            Node::Gvar(_) => Kind::Opaque("a global variable", Vec::new()),
            _ => Kind::Opaque("this Ruby", Vec::new()),
        }
    }

    fn hash(&self, pairs: &[Node], depth: usize) -> Kind {
        let mut lowered = Vec::with_capacity(pairs.len());
        for node in pairs {
            if let Node::Pair(pair) = node {
                lowered.push((self.node(&pair.key, depth), self.node(&pair.value, depth)));
            } else {
                return Kind::Opaque("a hash with a splat", self.nodes(pairs, depth));
            }
        }
        Kind::Hash(lowered)
    }

    fn call(&self, receiver: Option<&Node>, name: &str, arguments: &[Node], depth: usize) -> Kind {
        Kind::Call(Call {
            // `self.workers 2` is `workers 2`.
            receiver: receiver.filter(|node| !matches!(node, Node::Self_(_))).map(|node| self.boxed(node, depth)),
            name: name.to_owned(),
            arguments: self.nodes(arguments, depth),
            block: None,
        })
    }

    fn with_block(&self, call: &Node, parameters: Vec<String>, body: Option<&Node>, depth: usize) -> Kind {
        let block = Block { parameters, body: self.optional(body, depth) };
        if let Kind::Call(call) = self.kind(call, depth) {
            Kind::Call(Call { block: Some(block), ..call })
        } else {
            Kind::Opaque("a block", vec![*block.body])
        }
    }

    fn branch(&self, condition: &Node, then: Option<&Node>, otherwise: Option<&Node>, depth: usize) -> Kind {
        Kind::If { condition: self.boxed(condition, depth), then: self.optional(then, depth), otherwise: self.optional(otherwise, depth) }
    }

    /// `a += b` is `a = a + b` for a local; for anything else it is not followed.
    fn operator_assignment(&self, node: &lib_ruby_parser::nodes::OpAsgn, depth: usize) -> Kind {
        let target = self.read_of(&node.recv, depth);
        let value = self.node(&node.value, depth);
        let Kind::Local(name) = &target.kind else {
            return Kind::Opaque("an assignment", vec![target, value]);
        };
        let name = name.clone();
        let line = value.line;
        let sum = Call {
            receiver: Some(Box::new(target)),
            name: node.operator.trim_end_matches('=').to_owned(),
            arguments: vec![value],
            block: None,
        };
        Kind::AssignLocal(name, Box::new(Expression { line, kind: Kind::Call(sum) }))
    }

    /// The target of an assignment as the expression that reads it.
    fn read_of(&self, node: &Node, depth: usize) -> Expression {
        let line = self.lines.at(node.expression().begin);
        if let Node::Lvasgn(local) = node {
            return Expression { line, kind: Kind::Local(local.name.clone()) };
        }
        if let Node::IndexAsgn(index) = node {
            return Expression { line, kind: self.call(Some(&index.recv), "[]", &index.indexes, depth) };
        }
        if let Node::Casgn(target) = node {
            return Expression { line, kind: Kind::Constant(constant(target.scope.as_deref(), &target.name)) };
        }
        self.node(node, depth)
    }
}

/// Adjacent literal pieces are one string; a string of nothing but literals is no interpolation.
fn joined(parts: Vec<Expression>) -> Kind {
    let mut text = String::new();
    for part in &parts {
        let Some(piece) = part.literal() else {
            return Kind::Interpolated(parts);
        };
        text.push_str(piece);
    }
    Kind::Str(text)
}

fn constant(scope: Option<&Node>, name: &str) -> String {
    if let Some(Node::Const(outer)) = scope {
        return format!("{}::{name}", constant(outer.scope.as_deref(), &outer.name));
    }
    name.to_owned()
}

fn parameters(arguments: Option<&Node>) -> Vec<String> {
    let Some(Node::Args(arguments)) = arguments else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for argument in &arguments.args {
        if let Node::Arg(plain) = argument {
            names.push(plain.name.clone());
        } else if let Node::Procarg0(single) = argument {
            for inner in &single.args {
                if let Node::Arg(plain) = inner {
                    names.push(plain.name.clone());
                }
            }
        }
    }
    names
}

/// Ruby's integer literals: `0644` is octal, `_` separates.
fn integer(text: &str) -> Option<i64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    let (sign, digits) = text.strip_prefix('-').map_or((1, text.as_str()), |rest| (-1, rest));
    let (radix, digits) = if let Some(rest) = digits.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = digits.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = digits.strip_prefix("0o") {
        (8, rest)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, digits.trim_start_matches('0'))
    } else {
        (10, digits)
    };
    let digits = if digits.is_empty() { "0" } else { digits };
    i64::from_str_radix(digits, radix).ok().and_then(|value| value.checked_mul(sign))
}

/// Largest file that is parsed. A hand-written puma.rb has some 4 KiB, a long routes.rb some 60 KiB.
const LIMIT: usize = 256 * 1024;

/// Deepest nesting that is kept: our own tree is walked recursively on ordinary stacks.
const DEPTH: usize = 120;

/// The parser's own tree may be as deep as the file is long, and is dropped recursively on this stack.
const STACK: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(source: &str) -> Expression {
        parse(Path::new("puma.rb"), source.as_bytes()).unwrap()
    }

    #[test]
    fn integers_are_read_as_ruby_reads_them() {
        assert_eq!(integer("0640"), Some(0o640));
        assert_eq!(integer("1_000"), Some(1000));
        assert_eq!(integer("0x1f"), Some(31));
        assert_eq!(integer("-7"), Some(-7));
        assert_eq!(integer("0"), Some(0));
    }

    #[test]
    fn a_call_keeps_its_line_and_its_options() {
        let source = "\n\nactivate_control_app 'tcp://127.0.0.1:9293', { auth_token: 'x' }\n";
        let program = tree(source);
        let (line, call) = program.calls()[0];
        assert_eq!(line, 3);
        assert_eq!(call.name, "activate_control_app");
        assert_eq!(call.option("auth_token").and_then(Expression::literal), Some("x"));
    }

    #[test]
    fn a_squiggly_heredoc_is_one_string() {
        let program = tree("x = <<~PEM\n  a\n  b\nPEM\n");
        assert_eq!(program.kind, Kind::AssignLocal("x".into(), Box::new(Expression { line: 1, kind: Kind::Str("a\nb\n".into()) })));
    }

    #[test]
    fn broken_ruby_names_its_line() {
        assert_eq!(parse(Path::new("p"), b"a = 1\nbind(\n"), Err(ParseError::Syntax { line: 3 }));
    }

    #[test]
    fn a_deep_expression_neither_overflows_nor_panics() {
        let deep = format!("x = {}1{}", "(".repeat(20_000), ")".repeat(20_000));
        assert_eq!(parse(Path::new("p"), deep.as_bytes()).map(|program| program.line), Ok(1));
        let long = format!("x = 1{}", " + 1".repeat(60_000));
        let program = parse(Path::new("p"), long.as_bytes()).unwrap();
        let mut nodes = 0;
        program.walk(&mut |_| nodes += 1);
        assert!(nodes < 1000);
        // The most levels that the limit of size allows: one byte each.
        let worst = format!("x = {}1", "!".repeat(LIMIT - 5));
        assert!(parse(Path::new("p"), worst.as_bytes()).is_ok());
    }

    #[test]
    fn a_file_above_the_limit_is_refused() {
        assert_eq!(parse(Path::new("p"), &vec![b'\n'; LIMIT + 1]), Err(ParseError::TooLarge { limit: LIMIT }));
    }
}
