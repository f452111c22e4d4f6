// SPDX-License-Identifier: GPL-2.0
//! `--json FILE`: how a run went, for programs.
//!
//! In a file of its own, since standard output and error are the command's, byte for byte. (Who
//! wants no file names a descriptor, such as /dev/fd/3.) It is opened, and emptied, before all
//! else: there is no opening in the sandbox, and the record of an earlier run must not pass for this
//! one's. One object is written at the end, at once: an empty file is that of a run that has not
//! ended, or whose lg was killed.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{self, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lguest_abi::lguest_stats;
use serde::Serialize;
use serde_json::{json, Map, Value};

use crate::report::end::End;
use crate::report::stats;
use crate::report::steps::Steps;
use crate::report::system::cannot_write;
use crate::report::Error;

/// The record, while it is made. Clones are of the same: whoever ends lg writes it.
#[derive(Clone, Debug)]
pub struct Record {
    began: Instant,
    steps: Steps,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Until it is written.
    file: Option<(PathBuf, File)>,
    /// The same.
    other: Option<Other>,
    content: Content,
}

/// Somebody else who writes something of the record's content.
struct Other(Box<Writer>);
type Writer = dyn FnOnce(&Value) -> Result<(), Error> + Send;

impl fmt::Debug for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Other")
    }
}

/// Its content. All keys are there always; what is not known is null.
#[derive(Debug, Default, Serialize)]
struct Content {
    /// The exit status of lg.
    status: u8,
    /// The end in one word: [`End::reason`].
    reason: &'static str,
    /// The message about that.
    message: Option<String>,
    /// The code of an error of lg's, why it happened and what to do.
    code: Option<String>,
    why: Option<String>,
    fix: Option<String>,
    /// An absolute path.
    kernel: Option<String>,
    /// Bytes.
    memory: Option<u64>,
    seconds: Seconds,
    /// Of `--stats` and `--report`, by their names.
    counters: Option<Map<String, Value>>,
    /// The same of each vCPU, where there are several.
    vcpus: Vec<Map<String, Value>>,
    /// Of `--dry-run`.
    plan: Option<Value>,
}

/// Times from the beginning of lg, except for the last.
#[derive(Debug, Default, Serialize)]
struct Seconds {
    /// To the Guest's first instruction (or gdb's, before that).
    setup: Option<f64>,
    /// To the start of the command, as our own init tells it in the kernel's log.
    command: Option<f64>,
    /// To the end.
    total: f64,
}

/// Nothing will be written, unless it is told where.
impl Default for Record {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            steps: Steps::default(),
            inner: Arc::default(),
        }
    }
}

impl Record {
    /// It is to be in this file. That may wait, for who reads a FIFO.
    ///
    /// # Errors
    ///
    /// The file cannot be made, or not be written.
    pub fn open(&self, path: &Path) -> Result<(), Error> {
        let file = File::create(path).map_err(cannot_write(path))?;
        self.inner().file = Some((path.to_owned(), file));
        Ok(())
    }

    /// When it is written, the same content goes to `other` as well, whether there is a file or not.
    pub fn at_the_end(&self, other: impl FnOnce(&Value) -> Result<(), Error> + Send + 'static) {
        self.inner().other = Some(Other(Box::new(other)));
    }

    /// The steps of lg's own so far.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// The time when lg began.
    pub fn began(&self) -> Instant {
        self.began
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel is this one.
    pub fn kernel(&self, path: &Path) {
        let absolute = path::absolute(path).unwrap_or(path.into());
        self.inner().content.kernel = Some(absolute.to_string_lossy().into());
    }

    /// The Guest has so many bytes of RAM.
    pub fn memory(&self, size: u64) {
        self.inner().content.memory = Some(size);
    }

    /// This would run.
    pub fn plan(&self, plan: &impl Serialize) {
        self.inner().content.plan = Some(json!(plan));
    }

    /// The Guest starts now.
    pub fn starts(&self) {
        self.inner().content.seconds.setup = Some(self.seconds_to(Instant::now()));
    }

    /// The command has started at that time.
    pub fn command_started(&self, when: Instant) {
        self.inner().content.seconds.command = Some(self.seconds_to(when));
    }

    /// These are the counters at the end: of all vCPUs, and of each where there are several.
    pub fn counters(&self, stats: &lguest_stats, each: &[lguest_stats]) {
        let counters = |stats| -> Map<String, Value> {
            let counters = stats::counters(stats).into_iter();
            counters.map(|(name, value)| (name, json!(value))).collect()
        };
        let content = &mut self.inner().content;
        content.counters = Some(counters(stats));
        content.vcpus = each.iter().map(counters).collect();
    }

    /// As exact as it is of use.
    fn seconds_to(&self, when: Instant) -> f64 {
        (when - self.began).as_micros() as f64 / 1e6
    }

    /// Writes the record of a run that has ended so, unless it is written.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn write(&self, end: &End) -> Result<(), Error> {
        let mut inner = self.inner();
        let (file, other) = (inner.file.take(), inner.other.take());
        let content = &mut inner.content;
        content.seconds.total = self.seconds_to(Instant::now());
        content.status = end.status();
        content.reason = end.reason();
        content.message = end.message();
        if let End::Failed(error) = end {
            content.code = Some(error.code().to_string());
            content.why = Some(error.why());
            content.fix = Some(error.fix());
        }
        let content = &inner.content;
        let text = serde_json::to_string_pretty(content).expect("plain data") + "\n";
        let content = json!(content);
        // They may have no reader.
        drop(inner);
        let others = other.map_or(Ok(()), |Other(write)| write(&content));
        if let Some((path, mut file)) = file {
            file.write_all(text.as_bytes())
                .map_err(cannot_write(path))?;
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use lguest_abi::lguest_regs;
    use nix::sys::signal::Signal;

    use super::*;
    use crate::report::codes::Code;

    /// The record of a run with this end.
    fn written(end: &End, fill: impl FnOnce(&Record)) -> Value {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        fs::write(
            &path,
            "an old record, which is longer than the new one".repeat(100),
        )
        .unwrap();
        let record = Record::default();
        record.open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fill(&record);
        record.write(end).unwrap();
        // Who comes too late writes no second one.
        record.clone().write(&End::TimedOut).unwrap();
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()
    }

    #[test]
    fn a_whole_record() {
        let stats = lguest_stats {
            entries: 11,
            ..Default::default()
        };
        let record = written(&End::PoweredOff(7), |record| {
            record.kernel(Path::new("/boot/vmlinux"));
            record.memory(512 << 20);
            record.starts();
            record.command_started(Instant::now() + Duration::from_millis(1));
            record.counters(&stats, &[lguest_stats::default(), stats]);
            std::thread::sleep(Duration::from_millis(2));
        });
        assert_eq!(record["status"], 7);
        assert_eq!(record["reason"], "exited");
        assert_eq!(record["message"], Value::Null);
        assert_eq!(record["kernel"], "/boot/vmlinux");
        assert_eq!(record["memory"], 512 << 20);
        assert_eq!(record["counters"]["entries"], 11);
        assert_eq!(record["vcpus"][1]["entries"], 11);
        let seconds = |key: &str| record["seconds"][key].as_f64().unwrap();
        assert!(seconds("setup") <= seconds("command"), "{record}");
        assert!(seconds("command") < seconds("total"), "{record}");
    }

    #[test]
    fn every_end_has_a_record() {
        let death = End::Death {
            reason: "bad root".into(),
            regs: Box::<lguest_regs>::default(),
        };
        let error = End::of_output(std::io::Error::other("full"));
        for (end, status, reason, message) in [
            (End::Restart, 0, "restart", Value::Null),
            (End::Panic("oops".into()), 255, "panic", json!("oops")),
            (death, 255, "killed", json!("bad root")),
            (End::Left, 0, "left", Value::Null),
            (End::TimedOut, 124, "timeout", Value::Null),
            (
                End::Signal(Signal::SIGTERM),
                143,
                "signal",
                json!("SIGTERM"),
            ),
            (error, 125, "error", json!("cannot write the output")),
        ] {
            let record = written(&end, |_| {});
            assert_eq!(record["status"], status);
            assert_eq!(record["reason"], reason);
            assert_eq!(record["message"], message);
            assert_eq!(record["kernel"], Value::Null);
            assert_eq!(record["seconds"]["setup"], Value::Null);
            let is_error = reason == "error";
            for key in ["code", "why", "fix"] {
                assert_eq!(record[key].is_string(), is_error, "{key}: {record}");
            }
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let record = Record::default();
        record.open(Path::new("/dev/full")).unwrap();
        let error = record.write(&End::PoweredOff(0)).unwrap_err();
        assert_eq!(error.code(), Code::Write, "{error:?}");
        Record::default().write(&End::Left).unwrap();
    }
}
