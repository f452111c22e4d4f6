// SPDX-License-Identifier: GPL-2.0
//! The file of a trace: a header, and records as they were in the rings, until the file ends; but the uppermost byte of a
//! record's number is the vCPU's. Those of a vCPU are in order, and those of several come as they were taken. All numbers
//! are little endian.
//!
//! | offset | size | |
//! |---:|---:|---|
//! | 0 | 8 | `lgtrace` and a newline |
//! | 8 | 4 | version of this format, 2 |
//! | 12 | 4 | size of a record in bytes, 128 |
//! | 16 | 4 | frequency of the time stamp counter in kHz |
//! | 20 | 4 | how many bytes of the next field count, 0 to 32 |
//! | 24 | 32 | build ID of the Guest's kernel |
//! | 56 | 8 | 0 |
//! | 64 | | records |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use crate::report::codes::Code;
use crate::report::system::{cannot_read, cannot_write};
use crate::report::{Error, Explain};
use crate::trace::event::{self, Event};

const MAGIC: &[u8; 8] = b"lgtrace\n";
const VERSION: u32 = 2;
const HEADER: usize = 64;
const BUILD_ID_MAX: usize = 32;

/// The reasons why a file is no trace.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Code::Trace.title())]
pub struct NoTrace {
    why: String,
}

impl NoTrace {
    /// A trace that cannot be used, because of this.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl Explain for NoTrace {
    fn code(&self) -> Code {
        Code::Trace
    }

    fn why(&self) -> String {
        self.why.clone()
    }
}

/// What holds for a whole trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// The build ID of the Guest's kernel, if it has one.
    pub build_id: Vec<u8>,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let id = &self.build_id[..self.build_id.len().min(BUILD_ID_MAX)];
        let numbers = [VERSION, event::SIZE as u32, self.tsc_khz, id.len() as u32];
        bytes[..8].copy_from_slice(MAGIC);
        for (at, number) in (8..).step_by(4).zip(numbers) {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[24..24 + id.len()].copy_from_slice(id);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, NoTrace> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err(NoTrace::new("it does not begin like one"));
        }
        let version = number(8);
        if version != VERSION || number(12) as usize != event::SIZE {
            let why = format!("it is of version {version}, and this lg reads version {VERSION}");
            return Err(NoTrace::new(why));
        }
        let (tsc_khz, length) = (number(16), number(20) as usize);
        if tsc_khz == 0 || length > BUILD_ID_MAX {
            return Err(NoTrace::new("its header makes no sense"));
        }
        Ok(Self {
            tsc_khz,
            build_id: bytes[24..24 + length].to_vec(),
        })
    }
}

/// The reasons why there is no trace to be read.
enum Wrong {
    Io(io::Error),
    NoTrace(NoTrace),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<NoTrace> for Wrong {
    fn from(error: NoTrace) -> Self {
        Self::NoTrace(error)
    }
}

/// Reads as many bytes as there are and as there is room for.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// A trace that was read.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What holds for all of it.
    pub header: Header,
    /// The records, in order of their times.
    pub events: Vec<Event>,
    /// They are of several vCPUs.
    pub several: bool,
    /// The last record is not whole: lg was killed while it wrote.
    pub cut_off: bool,
}

impl Trace {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no trace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(cannot_read(path))?;
        Self::read(BufReader::new(file)).map_err(|wrong| match wrong {
            Wrong::Io(error) => cannot_read(path)(error),
            Wrong::NoTrace(error) => error.into(),
        })
    }

    /// Reads the bytes of a file, which anybody may have made.
    ///
    /// # Errors
    ///
    /// They are no trace.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoTrace> {
        match Self::read(bytes) {
            Ok(trace) => Ok(trace),
            Err(Wrong::NoTrace(error)) => Err(error),
            Err(Wrong::Io(error)) => unreachable!("they are there: {error}"),
        }
    }

    fn read(mut from: impl Read) -> Result<Self, Wrong> {
        let mut header = [0; HEADER];
        let length = fill(&mut from, &mut header)?;
        let header = Header::parse(&header[..length])?;
        let mut events: Vec<Event> = Vec::new();
        let mut record = [0; event::SIZE];
        // Of each vCPU, the last one's number and end.
        let mut last = BTreeMap::<u8, (u64, u64)>::new();
        let cut_off = loop {
            match fill(&mut from, &mut record)? {
                event::SIZE => {}
                length => break length != 0,
            }
            let index = events.len();
            let bad = |what| NoTrace::new(format!("record {index} makes no sense: {what}"));
            let event = Event::parse(&record).map_err(bad)?;
            let before = last.insert(event.vcpu, (event.number, event.done));
            if before.is_some_and(|(number, done)| event.number <= number || event.entered < done) {
                return Err(bad("it comes before the one before it").into());
            }
            events.push(event);
        };
        let several = last.len() > 1;
        if several {
            events.sort_by_key(|event| event.entered);
        }
        Ok(Self {
            header,
            events,
            several,
            cut_off,
        })
    }

    /// Microseconds from the first record to this moment.
    pub fn microseconds(&self, ticks: u64) -> f64 {
        let start = self.events.first().map_or(0, |event| event.entered);
        self.duration(ticks.saturating_sub(start))
    }

    /// So many ticks in microseconds.
    pub fn duration(&self, ticks: u64) -> f64 {
        ticks as f64 * 1000.0 / f64::from(self.header.tsc_khz)
    }
}

/// A file that is written.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Makes the file, or empties it. That may wait, for who reads a FIFO.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(cannot_write(path))?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// Begins it.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn begin(&mut self, header: &Header) -> Result<(), Error> {
        self.write(&header.to_bytes())
    }

    /// Adds records, as the ring has them.
    ///
    /// # Errors
    ///
    /// The file takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written: io::Result<()> = self.file.write_all(bytes);
        written.map_err(cannot_write(&self.path))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::trace::event::tests::{bytes, console, fault};

    /// The bytes of a file with two records.
    pub(crate) fn small() -> Vec<u8> {
        let header = Header {
            tsc_khz: 1_000_000,
            build_id: vec![1, 2, 3],
        };
        [&header.to_bytes()[..], &bytes(&fault()), &bytes(&console())].concat()
    }

    fn why(bytes: &[u8]) -> String {
        Trace::parse(bytes).unwrap_err().why
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        let mut writer = Writer::create(&path).unwrap();
        let small = small();
        writer.begin(&Header::parse(&small).unwrap()).unwrap();
        writer.write(&small[HEADER..]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), small);
        let trace = Trace::open(&path).unwrap();
        assert_eq!(trace.header.build_id, [1, 2, 3]);
        let numbers: Vec<_> = trace.events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [7, 8]);
        assert!(!trace.cut_off);
        // 1 GHz.
        assert_eq!(trace.microseconds(4000), 3.0);
        assert_eq!(trace.duration(500), 0.5);
    }

    #[test]
    fn a_file_that_is_cut_off_is_read_up_to_there() {
        let small = small();
        let trace = Trace::parse(&small[..small.len() - 1]).unwrap();
        assert!(trace.cut_off);
        assert_eq!(trace.events.len(), 1);
    }

    #[test]
    fn records_of_several_vcpus_are_in_order_of_their_times() {
        let mut file = small();
        for (vcpu, entered) in [(1, 500), (1, 4600), (31, 600)] {
            let (left, done) = (entered + 100, entered + 200);
            let record = lguest_abi::lguest_trace_record {
                number: entered,
                entered,
                left,
                done,
                ..fault()
            };
            let mut record = bytes(&record);
            event::set_vcpu(&mut record, vcpu);
            file.extend(record);
        }
        let trace = Trace::parse(&file).unwrap();
        let order = trace.events.iter().map(|event| (event.vcpu, event.number));
        let order: Vec<_> = order.collect();
        assert_eq!(order, [(1, 500), (31, 600), (0, 7), (1, 4600), (0, 8)]);
        assert!(trace.several && !Trace::parse(&small()).unwrap().several);
        // Those of one are one after the other.
        file.extend_from_within(HEADER + 2 * event::SIZE..HEADER + 3 * event::SIZE);
        assert!(why(&file).contains("record 5"));
    }

    #[test]
    fn other_files_are_refused() {
        let changed = |at: usize, byte| {
            let mut bytes = small();
            bytes[at] = byte;
            why(&bytes)
        };
        assert!(why(b"").contains("begin"));
        assert!(changed(0, b'L').contains("begin"));
        assert!(changed(8, 1).contains("version 1"));
        assert!(changed(12, 64).contains("version"));
        assert!(changed(20, 33).contains("header"));
        // The second record's number, and when it was entered.
        let second = HEADER + event::SIZE;
        assert!(changed(second, 7).contains("record 1"));
        assert!(changed(second + 9, 0x10).contains("record 1"));
        let mut slow = small();
        slow[16..20].fill(0);
        assert!(why(&slow).contains("header"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, changes: Vec<(usize, u8)>) {
            let _ = Trace::parse(&bytes);
            let mut changed = small();
            for (at, byte) in changes {
                let at = at % changed.len();
                changed[at] = byte;
            }
            let _ = Trace::parse(&changed);
        }
    }
}
