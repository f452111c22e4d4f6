// SPDX-License-Identifier: GPL-2.0
//! Is lg at home in the terminal of somebody who works? tmux is the terminal, and has the user's shell in it.
//!
//! Nothing here depends on time: each step waits until the screen shows what it must.

use crate::module::expect_no_users;
use crate::test::{text, Outcome, Row};
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("tmux-session", 120, session), ("tmux-crash", 120, crash)];

const HOST: &str = "host>";
const GUEST: &str = "/usr/lib/lg #";

/// Time between two looks: tmux takes some of the CPU for each, which the Guest needs.
const POLL: Duration = Duration::from_millis(100);

/// The one window of a tmux server, with a shell.
struct Window {
    deadline: Instant,
    /// What `stty -g` said to the shell's command at first.
    modes: String,
}

fn tmux(args: &[&str]) -> Result<String, String> {
    let output = Command::new("tmux")
        .args(["-L", "lg", "-f", "/dev/null"])
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(text)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("tmux {args:?}: {output:?}")),
    }
}

impl Window {
    /// A shell in a window of 30 rows and 100 columns.
    fn open(timeout: Duration) -> Result<Self, String> {
        // Without an editor of its own for the line, dash needs a terminal that is well.
        let shell = format!("PS1='{HOST} ' exec dash");
        tmux(&["new-session", "-d", "-x", "100", "-y", "30", &shell])?;
        let mut window = Self {
            deadline: Instant::now() + timeout,
            modes: String::new(),
        };
        window.prompt(HOST)?;
        window.modes = window.modes_now()?;
        Ok(window)
    }

    /// Presses keys, by tmux's names of them.
    fn press(&self, keys: &[&str]) -> Outcome {
        tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Types a line, and ends it when it is on the screen: what comes after is then an answer.
    fn line(&self, line: &str) -> Outcome {
        tmux(&["send-keys", "-l", line])?;
        self.wait(line, |screen| last(screen).ends_with(line))?;
        self.press(&["Enter"])
    }

    /// The screen, as wide and high as it is.
    fn screen(&self) -> Result<Vec<String>, String> {
        let screen = tmux(&["capture-pane", "-p"])?;
        Ok(screen.lines().map(|line| line.trim_end().into()).collect())
    }

    fn wait(&self, what: &str, mut until: impl FnMut(&[String]) -> bool) -> Outcome {
        loop {
            let screen = self.screen()?;
            if until(&screen) {
                return Ok(());
            }
            if Instant::now() > self.deadline {
                let screen = screen.join("\n");
                return Err(format!(
                    "no {what}; on the screen:\n{}\n",
                    screen.trim_end()
                ));
            }
            sleep(POLL);
        }
    }

    /// Waits for a line that is `line`, and nothing else.
    fn shows(&self, line: &str) -> Outcome {
        self.wait(line, |screen| screen.iter().any(|shown| shown == line))
    }

    /// Waits until a shell waits for a command, on a line of its own.
    fn prompt(&self, prompt: &str) -> Outcome {
        self.wait(prompt, |screen| last(screen).trim_start() == prompt)
    }

    /// Runs a command of the shell that has this prompt, on a clear screen.
    fn run(&self, prompt: &str, command: &str) -> Outcome {
        self.line(command)?;
        self.prompt(prompt)
    }

    /// Starts a Guest with a shell.
    fn start_guest(&self) -> Outcome {
        self.run(HOST, "clear")?;
        self.line("lg run")?;
        self.prompt(GUEST)
    }

    /// The modes of the terminal, as a command of the shell sees them.
    fn modes_now(&self) -> Result<String, String> {
        const FILE: &str = "/tmp/tmux-modes";
        self.run(HOST, &format!("clear; stty -g >{FILE}"))?;
        fs::read_to_string(FILE).map_err(text)
    }

    /// Waits until `stty -a` has all these words for the terminal.
    fn terminal_is(&self, words: &[&str]) -> Outcome {
        let terminal = tmux(&["display-message", "-p", "#{pane_tty}"])?;
        let mut output = String::new();
        self.wait(&format!("{words:?}"), |_| {
            let stty = Command::new("stty")
                .args(["-a", "-F", terminal.trim()])
                .output();
            output = stty.map_or_else(text, |stty| String::from_utf8_lossy(&stty.stdout).into());
            words
                .iter()
                .all(|word| output.split_whitespace().any(|shown| shown == *word))
        })
        .map_err(|error| format!("{error}{output}"))
    }

    /// The shell is back, and all is as it was: the modes, the echo, the end of a line, Ctrl-d.
    fn is_well(&self) -> Outcome {
        self.prompt(HOST)?;
        self.terminal_is(&["icanon", "echo", "isig", "opost"])?;
        let modes = self.modes_now()?;
        if modes != self.modes {
            return Err(format!("{} has become {modes}", self.modes));
        }
        self.run(HOST, "clear")?;
        self.line("cat")?;
        self.line("twice")?;
        self.wait("line that cat repeats", |screen| {
            screen.iter().filter(|line| *line == "twice").count() == 2
        })?;
        self.press(&["C-d"])?;
        self.prompt(HOST)
    }
}

/// The last line that has something on it.
fn last(screen: &[String]) -> &str {
    let written = screen.iter().rfind(|line| !line.is_empty());
    written.map_or("", |line| line)
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = tmux(&["kill-server"]);
        // It goes a little later, and until then the next window would be one of this server's, which it then takes along.
        while Instant::now() < self.deadline
            && process("tmux: server").is_ok_and(|server| server.is_some())
        {
            sleep(POLL);
        }
    }
}

/// All that a terminal and its keys are for.
fn session(timeout: Duration) -> Outcome {
    let window = Window::open(timeout)?;
    window.start_guest()?;
    window.terminal_is(&["-icanon", "-echo", "-isig", "-opost"])?;

    // The size, at first and when it changes, to programs that ask and to one that is told.
    window.run(GUEST, "stty size")?;
    window.shows("30 100")?;
    window.line("vi /tmp/new-file")?;
    let status_at = |row: usize| {
        move |screen: &[String]| screen.len() == row && screen[row - 1].contains("new-file")
    };
    window.wait("status line in row 30", status_at(30))?;
    tmux(&["resize-window", "-x", "120", "-y", "40"])?;
    window.wait("status line in row 40", status_at(40))?;
    window.line(":q!")?;
    window.run(GUEST, "clear; stty size")?;
    window.shows("40 120")?;

    // Ctrl-c is the Guest's, and there for who has the terminal by then.
    window.line("clear; sh -c 'echo asleep; exec sleep 1000'")?;
    window.shows("asleep")?;
    window.press(&["C-c"])?;
    window.prompt(GUEST)?;
    window.run(GUEST, "echo status $?")?;
    window.shows("status 130")?;

    window.run(GUEST, "clear")?;
    window.press(&["C-a", "h"])?;
    window.shows("Ctrl-a Ctrl-a  send Ctrl-a")?;

    // Of two Ctrl-a one arrives.
    window.line("clear; echo listening; head -n 1 | od -An -tx1")?;
    window.shows("listening")?;
    window.press(&["C-a", "C-a", "b", "Enter"])?;
    window.shows(" 01 62 0a")?;
    window.prompt(GUEST)?;

    window.press(&["C-a", "x"])?;
    window.is_well()
}

/// Whatever kills lg, the user's shell goes on as if nothing had been, and so does the Host.
fn crash(timeout: Duration) -> Outcome {
    let window = Window::open(timeout)?;
    for signal in [libc::SIGKILL, libc::SIGSEGV, libc::SIGSYS] {
        window.start_guest()?;
        kill_lg(signal, window.deadline)?;
        window
            .is_well()
            .map_err(|error| format!("after signal {signal}: {error}"))?;
        expect_no_users()?;
    }
    window.run(HOST, "clear; lg run guests/hello")?;
    window.shows("Hello from guest kernel mode at CPL 3.")
}

/// Sends `signal` to lg until it is gone: Rust's handler of SIGSEGV lets the first one pass.
fn kill_lg(signal: i32, deadline: Instant) -> Outcome {
    let mut signals = 0;
    while let Some(lg) = process("lg")? {
        if Instant::now() > deadline {
            return Err(format!("lg survives signal {signal}"));
        }
        // SAFETY: at worst, the number is by now that of another process of this test.
        unsafe { libc::kill(lg, signal) };
        signals += 1;
        sleep(POLL);
    }
    match signals {
        0 => Err("there is no lg".into()),
        _ => Ok(()),
    }
}

/// The process of this name.
pub(crate) fn process(name: &str) -> Result<Option<i32>, String> {
    let named = |process: std::io::Result<fs::DirEntry>| {
        let process = process.ok()?;
        let comm = fs::read_to_string(process.path().join("comm")).ok()?;
        (comm.trim_end() == name).then(|| process.file_name().to_string_lossy().parse().ok())?
    };
    Ok(fs::read_dir("/proc").map_err(text)?.find_map(named))
}
