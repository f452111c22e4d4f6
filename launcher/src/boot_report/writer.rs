// SPDX-License-Identifier: GPL-2.0
//! A report while it is made: what the rest of lg tells it, and where it goes.
//!
//! Its file is opened before all else: there is no opening in the sandbox. It is written at the end, whatever that
//! is; an empty file is that of a run that has not ended, or whose lg was killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::Value;

use crate::boot_report::data::{Data, Phase, Run, VERSION};
use crate::boot_report::earlier;
use crate::boot_report::exits::Exits;
use crate::boot_report::klog::Reader;
use crate::boot_report::page;
use crate::devices::bytes::Output;
use crate::report::record::Record;
use crate::report::steps::Steps;
use crate::report::system::cannot_write;
use crate::report::Error;

/// Lines of the log that the page shows, and how much of each.
const LINES: usize = 60;
const LINE_MAX: usize = 300;

/// The report of one run. Clones are of the same.
#[derive(Clone)]
pub struct BootReport(Arc<Inner>);

struct Inner {
    began: Instant,
    date: SystemTime,
    command: Vec<String>,
    earlier: Option<Data>,
    steps: Steps,
    reader: Mutex<Reader>,
    exits: Exits,
    log: Mutex<Vec<String>>,
}

impl BootReport {
    /// Makes the file at `path`, or empties it, and has `record` write it at the end of the run of `command`; to be
    /// compared with the report at `since`, which may be the same file. That may wait, for who reads a FIFO.
    ///
    /// # Errors
    ///
    /// The file cannot be made, or the earlier one is none.
    pub fn open(
        path: &Path,
        since: Option<&Path>,
        command: &[OsString],
        record: &Record,
    ) -> Result<Self, Error> {
        let earlier = since.map(earlier::read).transpose()?;
        let mut file = File::create(path).map_err(cannot_write(path))?;
        let words = command.iter().map(|word| word.to_string_lossy().into());
        let report = Self(Arc::new(Inner {
            began: record.began(),
            date: SystemTime::now(),
            command: words.collect(),
            earlier,
            steps: record.steps().clone(),
            reader: Mutex::new(Reader::new(record.began())),
            exits: Exits::new(record.began()),
            log: Mutex::default(),
        }));
        let (inner, path) = (report.0.clone(), path.to_owned());
        record.at_the_end(move |content| {
            let data = inner.data(content);
            let page = page::render(&data, inner.earlier.as_ref());
            file.write_all(page.as_bytes()).map_err(cannot_write(path))
        });
        Ok(report)
    }

    /// What goes to `output` is the log of the Guest's kernel.
    pub fn listen(&self, mut output: Output) -> Output {
        let inner = self.0.clone();
        Box::new(move |text| {
            inner.reader().read(text, Instant::now());
            output(text);
        })
    }

    /// Takes the record of the vCPU.
    pub fn exits(&self) -> &Exits {
        &self.0.exits
    }

    /// The log has ended with these lines.
    pub fn log_ends(&self, tail: &str) {
        let lines: Vec<_> = tail.lines().collect();
        let lines = &lines[lines.len().saturating_sub(LINES)..];
        let lines = lines
            .iter()
            .map(|line| line.trim_start().chars().take(LINE_MAX).collect());
        *self.0.log.lock().unwrap_or_else(PoisonError::into_inner) = lines.collect();
    }
}

impl Inner {
    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data of a run of which `--json` would say this.
    fn data(&self, content: &Value) -> Data {
        let run: Run = serde_json::from_value(content.clone()).expect("the same names");
        let reader = self.reader();
        let seconds = &run.seconds;
        let entry = seconds.setup;
        let phases = entry.map(|entry| reader.phases(entry, seconds.command, seconds.total));
        let date = self.date.duration_since(SystemTime::UNIX_EPOCH);
        Data {
            version: VERSION,
            began: date.map_or(0, |date| date.as_secs()),
            command: self.command.clone(),
            kernel_version: reader.version().map(Into::into),
            steps: steps(&self.steps, self.began),
            phases: phases.unwrap_or_default(),
            initcalls: reader.initcalls(),
            exits: self.exits.data(),
            log: self
                .log
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            run,
        }
    }
}

/// The steps, each from the end of that before.
fn steps(steps: &Steps, began: Instant) -> Vec<Phase> {
    let mut from = 0.0;
    let phase = |(name, done): (&str, Instant)| {
        let to = done.saturating_duration_since(began).as_secs_f64();
        let name = name.into();
        Phase {
            name,
            from: std::mem::replace(&mut from, to),
            to,
        }
    };
    steps.all().into_iter().map(phase).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::boot_report::klog::tests::LOG;
    use crate::report::codes::Code;
    use crate::report::end::End;
    use crate::trace::file::tests::small;

    /// A report of a run that has ended so.
    fn written(path: &Path, since: Option<&Path>, end: &End) -> Data {
        let record = Record::default();
        let command = ["echo".into(), "<b>".into()];
        let report = BootReport::open(path, since, &command, &record).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"");
        record.steps().done("kernel read");
        record.steps().done("memory mapped");
        record.starts();
        report.exits().begin(1_000_000);
        report.exits().take(&small()[64..]);
        let mut output = report.listen(Box::new(|_| {}));
        for (_, line) in LOG {
            output(format!("{line}\n").as_bytes());
        }
        report.log_ends("    one\n    </pre><script>alert(1)</script>\n");
        record.write(end).unwrap();
        // Who comes too late writes no second one.
        record.write(&End::Left).unwrap();
        earlier::read(path).unwrap()
    }

    #[test]
    fn a_whole_report() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boot.html");
        let data = written(&path, None, &End::PoweredOff(7));
        assert_eq!((data.run.status, data.run.reason.as_str()), (7, "exited"));
        assert_eq!(data.command, ["echo", "<b>"]);
        let steps: Vec<_> = data.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(steps, ["kernel read", "memory mapped"]);
        assert_eq!(data.steps[0].to, data.steps[1].from);
        assert_eq!(data.initcalls.count, 3);
        assert_eq!(data.exits.unwrap().counters["entries"], 2);
        assert!(data
            .phases
            .iter()
            .any(|phase| phase.name == "initcalls: core"));
        assert_eq!(data.log.len(), 2);
        // The same file may be the one to compare with.
        written(&path, Some(&path), &End::Panic("oops".into()));
        let page = fs::read_to_string(&path).unwrap();
        assert!(
            page.contains("What changed") && page.contains("oops"),
            "{page}"
        );
    }

    #[test]
    fn a_report_that_cannot_be_is_refused_at_once() {
        let open = |path: &str, since| {
            let opened = BootReport::open(Path::new(path), since, &[], &Record::default());
            opened.map(drop).unwrap_err().code()
        };
        assert_eq!(open("/no/such/file", None), Code::Write);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let new = path.to_str().unwrap();
        assert_eq!(open(new, Some(Path::new("/no/such/file"))), Code::Read);
        assert_eq!(open(new, Some(Path::new("/proc/self/exe"))), Code::Report);
        assert!(!path.exists());
    }

    #[test]
    fn a_run_that_was_refused_has_a_report_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boot.html");
        let record = Record::default();
        BootReport::open(&path, None, &[], &record).unwrap();
        let error = earlier::NoReport::new("<i>");
        record.write(&End::Failed(error.into())).unwrap();
        let page = fs::read_to_string(&path).unwrap();
        assert!(
            page.contains("&lt;i&gt;") && !page.contains("<i>"),
            "{page}"
        );
    }
}
