// SPDX-License-Identifier: GPL-2.0
//! `--config FILE`: options of `lg run` from a TOML file.
//!
//! There is one definition of the options, the command line's. What a file says becomes arguments
//! that stand before those of the command line, and clap reads all of them: an option that may be
//! repeated adds to the file's, as cargo joins the arrays of its files, another replaces it.

#![forbid(unsafe_code)]

use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, CommandFactory, Parser, ValueHint};
use toml::de::{DeInteger, DeTable, DeValue};
use toml::Spanned;

use crate::cli::{Cli, Command, Run};
use crate::report::codes::Code;
use crate::report::system::cannot_read;
use crate::report::{Error, Explain};

/// How like an option an unknown key must be to be taken for it mistyped. (0.7 is clap's own limit.)
const LIKE: f64 = 0.7;
/// Options that make no sense in a file.
const NOT_IN_FILES: [&str; 2] = ["config", "help"];

/// The reasons why a file says no options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Problem {
    #[error("this is not TOML")]
    Syntax(String),
    #[error("there is no option {key}")]
    UnknownKey { key: String, like: Option<String> },
    #[error("{key} has the wrong type")]
    Type {
        key: String,
        expected: &'static str,
        found: &'static str,
    },
    #[error("{key} has a value that cannot be")]
    Value { key: String, why: String },
}

impl Problem {
    fn code(&self) -> Code {
        match self {
            Self::Syntax(_) => Code::ConfigSyntax,
            Self::UnknownKey { .. } => Code::ConfigKey,
            Self::Type { .. } | Self::Value { .. } => Code::ConfigValue,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Syntax(why) | Self::Value { why, .. } => why.clone(),
            Self::UnknownKey { .. } => {
                "the keys are the long options of lg run, and kernel and command".into()
            }
            Self::Type {
                expected, found, ..
            } => format!("it is {found}, and must be {expected}"),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Syntax(_) => {
                "write lines such as memory = \"1G\", with quotes around strings".into()
            }
            Self::UnknownKey {
                like: Some(like), ..
            } => format!("did you mean {like}?"),
            Self::UnknownKey { like: None, .. } => {
                "leave it out; lg run --help has all options".into()
            }
            Self::Type { .. } | Self::Value { .. } => "lg run --help says what it takes".into(),
        }
    }
}

/// A line of a file that says no options.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {source}", path.display())]
pub struct OptionsError {
    path: PathBuf,
    line: usize,
    source: Problem,
}

impl Explain for OptionsError {
    fn code(&self) -> Code {
        self.source.code()
    }

    fn why(&self) -> String {
        self.source.why()
    }

    fn fix(&self) -> String {
        self.source.fix()
    }
}

/// `run`, as clap has made it of `arguments`, completed by the file that it names, if it does.
///
/// # Errors
///
/// The file cannot be read, or something in it is no option.
pub fn complete(run: Box<Run>, arguments: &[OsString]) -> Result<Box<Run>, Error> {
    let Some(path) = &run.config else {
        return Ok(run);
    };
    let text = fs::read_to_string(path).map_err(cannot_read(path))?;
    // Never empty, so that no path in the file can be taken for an option.
    let directory = Path::new(".").join(path.parent().unwrap_or(Path::new("")));
    let file = FileOptions::parse(&text, &directory).map_err(|(at, source)| OptionsError {
        path: path.clone(),
        line: 1 + text[..at].matches('\n').count(),
        source,
    })?;
    // "lg" and "run" come first: neither lg nor any other command has options that `run` has too.
    let (head, rest) = arguments.split_at(2);
    let mut run = parse(head.iter().chain(&file.arguments).chain(rest))
        .expect("each part was accepted by itself, and no option excludes another");
    run.kernel = run.kernel.or(file.kernel);
    if run.command.is_empty() {
        run.command = file.command;
    }
    Ok(run)
}

fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Box<Run>, clap::Error> {
    match Cli::try_parse_from(arguments)?.command {
        Command::Run(run) => Ok(run),
        _ => unreachable!("the second argument is run"),
    }
}

/// A problem, and at which byte.
type Found = (usize, Problem);

/// The content of a file of options.
#[derive(Debug, Default, PartialEq, Eq)]
struct FileOptions {
    /// The options.
    arguments: Vec<OsString>,
    /// The keys that have no option's name on the command line.
    kernel: Option<PathBuf>,
    command: Vec<OsString>,
}

impl FileOptions {
    /// Reads the text of a file in `directory`.
    fn parse(text: &str, directory: &Path) -> Result<Self, Found> {
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            (at, Problem::Syntax(error.message().into()))
        })?;
        let mut cli = Cli::command();
        cli.build();
        let run = cli.find_subcommand("run").expect("there is one");
        let known: Vec<_> = run
            .get_arguments()
            .map(|arg| (arg.get_long().unwrap_or(arg.get_id().as_str()), arg))
            .filter(|(key, _)| !NOT_IN_FILES.contains(key))
            .collect();
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        // The first mistake in the file is told of, not that of the first name.
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut options = Self::default();
        for (key, value) in entries {
            let (at, key) = (key.span().start, &**key.get_ref());
            let Some((_, arg)) = known.iter().find(|(known, _)| *known == key) else {
                let like = nearest(key, known.iter().map(|(known, _)| *known));
                let key = key.into();
                return Err((at, Problem::UnknownKey { key, like }));
            };
            let add = |value| options.add(arg, key, value, directory);
            match (arg.get_action(), value.get_ref()) {
                (ArgAction::Append, DeValue::Array(values)) => values.iter().try_for_each(add)?,
                // One string would leave open where its words end.
                (ArgAction::Append, _) if arg.is_positional() => {
                    let problem = wrong_type(key, "an array of strings", value.get_ref());
                    return Err((value.span().start, problem));
                }
                _ => [value].into_iter().try_for_each(add)?,
            }
        }
        Ok(options)
    }

    /// Adds one value of the option `key`, which `arg` defines.
    fn add(
        &mut self,
        arg: &Arg,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        directory: &Path,
    ) -> Result<(), Found> {
        let problem = |problem| (value.span().start, problem);
        let mut argument = OsString::from(format!("--{key}"));
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            match value.get_ref() {
                DeValue::Boolean(true) => self.arguments.push(argument),
                DeValue::Boolean(false) => {}
                other => return Err(problem(wrong_type(key, "true or false", other))),
            }
            return Ok(());
        }
        let text = text(key, arg, value.get_ref(), directory).map_err(problem)?;
        if arg.get_id() == "kernel" {
            self.kernel = Some(text.into());
        } else if arg.is_positional() {
            self.command.push(text);
        } else {
            argument.push("=");
            argument.push(text);
            let arguments = ["lg", "run"].map(OsString::from);
            parse(arguments.iter().chain([&argument])).map_err(|error| {
                let why = reason(&error);
                problem(Problem::Value {
                    key: key.into(),
                    why,
                })
            })?;
            self.arguments.push(argument);
        }
        Ok(())
    }
}

/// A value as the command line has it.
fn text(key: &str, arg: &Arg, value: &DeValue<'_>, directory: &Path) -> Result<OsString, Problem> {
    let is_path = matches!(
        arg.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath
    );
    match value {
        DeValue::String(text) if text.contains('\0') => Err(Problem::Value {
            key: key.into(),
            why: "there can be no NUL in it".into(),
        }),
        // The path is what the value begins with, if it is not all of it.
        DeValue::String(text) if is_path && !text.is_empty() => Ok(directory.join(&**text).into()),
        DeValue::String(text) => Ok((&**text).into()),
        DeValue::Integer(number) => integer(number).ok_or_else(|| Problem::Value {
            key: key.into(),
            why: "that is too much".into(),
        }),
        DeValue::Float(number) => Ok(number.as_str().into()),
        other => Err(wrong_type(key, "a string or a number", other)),
    }
}

/// In decimal.
fn integer(number: &DeInteger<'_>) -> Option<OsString> {
    let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(number.to_string().into())
}

fn wrong_type(key: &str, expected: &'static str, value: &DeValue<'_>) -> Problem {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Problem::Type {
        key: key.into(),
        expected,
        found,
    }
}

/// What clap complains of, without the option's name and the usage.
fn reason(error: &clap::Error) -> String {
    match error.source() {
        Some(source) => source.to_string(),
        None => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").into()
        }
    }
}

/// The one of `known` that `key` is most like, if it is like any.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|known| (strsim::jaro(key, known), known))
        .filter(|(likeness, _)| *likeness > LIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &str) -> Result<FileOptions, Found> {
        FileOptions::parse(text, Path::new("./dir"))
    }

    fn problem(text: &str) -> Problem {
        file(text).unwrap_err().1
    }

    #[test]
    fn options_become_arguments() {
        let options = file(
            r#"
            kernel = "vmlinux"
            memory = "1G"
            rw = true
            stats = false
            timeout = 1_500
            disk = ["a.raw,ro", "/b.raw"]
            share = "src:src"
            append = ["debug", "-x"]
            env = ["A=b"]
            net = "user"
            vsock = "sock,cid=4"
            command = ["make", "-j2"]
            "#,
        );
        let FileOptions {
            arguments,
            kernel,
            command,
        } = options.unwrap();
        assert_eq!(kernel, Some("./dir/vmlinux".into()));
        assert_eq!(command, ["make", "-j2"]);
        let expected = [
            "--memory=1G",
            "--rw",
            "--timeout=1500",
            "--disk=./dir/a.raw,ro",
            "--disk=/b.raw",
            "--share=./dir/src:src",
            "--append=debug",
            "--append=-x",
            "--env=A=b",
            "--net=user",
            "--vsock=./dir/sock,cid=4",
        ];
        assert_eq!(arguments, expected);
        let numbers = file("memory = 0x200\ntimeout = 0.5").unwrap();
        let expected = ["--memory=512", "--timeout=0.5"];
        assert_eq!(numbers.arguments, expected);
        assert_eq!(file("").unwrap(), FileOptions::default());
    }

    #[test]
    fn every_option_that_begins_with_a_path_says_so() {
        let mut cli = Cli::command();
        cli.build();
        let run = cli.find_subcommand("run").unwrap();
        for arg in run.get_arguments() {
            let names = arg.get_value_names().unwrap_or_default();
            let named = names.first().is_some_and(|name| {
                ["FILE", "DIR", "PATH", "SOCKET", "KERNEL"]
                    .iter()
                    .any(|kind| name.starts_with(kind))
            });
            let hinted = !matches!(arg.get_value_hint(), ValueHint::Unknown | ValueHint::Other);
            assert_eq!(named, hinted, "{}", arg.get_id());
        }
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = |key: &str, like: Option<&str>| Problem::UnknownKey {
            key: key.into(),
            like: like.map(str::to_owned),
        };
        assert_eq!(problem("memroy = 1"), unknown("memroy", Some("memory")));
        assert_eq!(problem("Kernel = 1"), unknown("Kernel", Some("kernel")));
        assert_eq!(problem("xyzzy = 1"), unknown("xyzzy", None));
        assert_eq!(problem("config = 'a'"), unknown("config", None));
        assert!(matches!(problem("m = "), Problem::Syntax(_)));
        assert!(matches!(
            problem("rw = true\nrw = true"),
            Problem::Syntax(_)
        ));
        let wrong = |key: &str, expected, found| Problem::Type {
            key: key.into(),
            expected,
            found,
        };
        assert_eq!(problem("rw = 1"), wrong("rw", "true or false", "a number"));
        let scalar = "a string or a number";
        assert_eq!(
            problem("memory = true"),
            wrong("memory", scalar, "true or false")
        );
        assert_eq!(problem("memory = []"), wrong("memory", scalar, "an array"));
        assert_eq!(problem("disk = [['a']]"), wrong("disk", scalar, "an array"));
        assert_eq!(problem("[disk]\na = 1"), wrong("disk", scalar, "a table"));
        let array = "an array of strings";
        assert_eq!(
            problem("command = 'make'"),
            wrong("command", array, "a string")
        );
        let value = |text| match problem(text) {
            Problem::Value { key, why } => (key, why),
            other => panic!("{other:?}"),
        };
        let (key, why) = value("memory = 'lots'");
        assert_eq!(key, "memory");
        assert!(why.contains("512M and 2G") && !why.contains('\n'), "{why}");
        assert!(value("net = 'tape'").1.contains("tap=INTERFACE"));
        assert!(value("root = ''").1.contains("required"));
        assert!(value("root = \"a\\u0000b\"").1.contains("NUL"));
        assert!(value("command = [\"a\\u0000b\"]").1.contains("NUL"));
        assert!(value("timeout = 99999999999999999999")
            .1
            .contains("too much"));
        // The first mistake, where it is.
        let text = "rw = true\nzzzz = 1\nappend = 'x'\naaaa = 2";
        assert_eq!(file(text).unwrap_err(), (10, unknown("zzzz", None)));
    }

    /// `lg run` with these arguments and a file of this text.
    fn completed(text: &str, arguments: &[&str]) -> Result<Box<Run>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lg.toml");
        fs::write(&path, text).unwrap();
        let mut all: Vec<OsString> = ["lg", "run", "--config"].map(OsString::from).into();
        all.push(path.into());
        all.extend(arguments.iter().map(OsString::from));
        complete(parse(&all).unwrap(), &all)
    }

    #[test]
    fn the_command_line_counts_more() {
        let text = "kernel = '/k'\nmemory = '1G'\nrw = true\nenv = ['A=1', 'B=1']\nappend = 'one'\ncommand = ['a', '-b']";
        let run = completed(text, &[]).unwrap();
        assert_eq!(run.kernel, Some("/k".into()));
        assert_eq!((run.memory, run.rw), (1 << 30, true));
        assert_eq!(run.command, ["a", "-b"]);
        let arguments = ["-m", "2G", "/l", "--env=A=2", "--append", "--", "--", "c"];
        let run = completed(text, &arguments).unwrap();
        assert_eq!(run.kernel, Some("/l".into()));
        assert_eq!(run.memory, 2 << 30);
        assert_eq!(run.env, ["A=1", "B=1", "A=2"]);
        assert_eq!(run.append, ["one", "--"]);
        assert_eq!(run.command, ["c"]);
        let run = completed(text, &["--append", "--"]).unwrap();
        assert_eq!(run.command, ["a", "-b"]);
        assert_eq!(run.append, ["one", "--"]);
        let run = completed(text, &["--"]).unwrap();
        assert_eq!(run.command, ["a", "-b"]);
    }

    #[test]
    fn mistakes_have_a_line() {
        let error = completed("rw = true\n\nmemory = 'x'\n", &[]).unwrap_err();
        assert!(error.to_string().contains(":3: "), "{error:?}");
        let error = completed("rw = true\nmemory\n", &[]).unwrap_err();
        assert!(error.to_string().contains(":2: "), "{error:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(
            text in "(kernel|rw|memory|disk|env|command|timeout|[a-z.]{0,3})? ?=? ?(true|'[^']{0,5}'|\\[\\]|\\PC{0,9})\n?{0,2}",
        ) {
            let _ = file(&text);
        }

        /// What is accepted line by line is accepted together, before any command line.
        #[test]
        fn options_go_together(
            lines in proptest::sample::subsequence(vec![
                "kernel = '-k'", "memory = '1G'", "rw = true", "root = '-r'", "initrd = 'i'",
                "append = ['-a', '--']", "disk = ['-d', 'e,ro']", "share = ['s:s', 't:t:ro']",
                "net = 'user,forward=1:1'", "vsock = '-v'", "env = ['A', '-B=c']", "timeout = 1.5",
                "gdb = '-g'", "stats = true", "verbose = true", "command = ['-c', '--']",
            ], 0..16),
            arguments in proptest::sample::subsequence(
                vec!["-v", "--rw", "-m1G", "--gdb=g", "--disk=a", "kernel", "--", "a", "--"], 0..9),
        ) {
            // Whatever the command line is by itself.
            let mut all = vec!["lg", "run"];
            all.extend(&arguments);
            if parse(&all).is_ok() {
                completed(&lines.join("\n"), &arguments).unwrap();
            }
        }
    }
}
