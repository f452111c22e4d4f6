// SPDX-License-Identifier: GPL-2.0
//! /dev/lguest: the device ABI of `include/uapi/linux/lguest.h`, made safe.
//!
//! The rule that every block of `unsafe` in it relies on: an ioctl gets a
//! pointer to a live value of the very type that the header names for it, and the module reads and
//! writes nothing else of ours but the RAM that [`Vm::new`] gave it. The pages of a [`Ring`] are the module's own.

#![allow(unsafe_code)]

use std::ffi::{c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::mem::{self, offset_of};
use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lguest_abi::*;
use nix::libc;
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use vm_memory::{GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use crate::boot::Entry;
use crate::machine::bad_memory::{self, BadMemory};
use crate::memory::Memory;
use crate::plan::told::Clock;
use crate::report::codes::Code;
use crate::report::system::MORE_FILES;
use crate::report::Explain;
use crate::trace::event::{self, Event};

/// The entries of the shadow on the way to an address in one of the Guest's modes, from the top. 0 ends it.
pub type Way = [u64; 5];

/// The module's device.
pub const DEVICE: &str = "/dev/lguest";
const PAGE: usize = 4096;
/// IF, and the bit that is always set.
const RFLAGS_AT_ENTRY: u64 = 0x202;

/// The reasons why there is no VM, or no such one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ModuleError {
    #[error("{}", Code::NoDevice.title())]
    NoDevice,
    #[error("cannot open /dev/lguest")]
    Open(#[source] io::Error),
    #[error("{}", Code::ModuleAbi.title())]
    Abi { theirs: u32, ours: u32 },
    #[error("the lg module refuses {call}")]
    Refused {
        call: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    BadMemory(#[from] BadMemory),
}

impl Explain for ModuleError {
    fn code(&self) -> Code {
        match self {
            Self::NoDevice => Code::NoDevice,
            Self::Open(source) if source.kind() == ErrorKind::PermissionDenied => {
                Code::DevicePermission
            }
            Self::Open(_) => Code::OpenDevice,
            Self::Abi { .. } => Code::ModuleAbi,
            Self::Refused { .. } => Code::Module,
            Self::BadMemory(error) => error.code(),
        }
    }

    fn why(&self) -> String {
        match self {
            Self::NoDevice => "the lg module is not loaded".into(),
            Self::Open(source) if source.kind() == ErrorKind::PermissionDenied => {
                "you are not in the group that may use it (usually \"lguest\")".into()
            }
            Self::Open(source) | Self::Refused { source, .. } => source.to_string(),
            Self::Abi { theirs, ours } => {
                format!("it speaks version {theirs} of the ABI, this lg version {ours}")
            }
            Self::BadMemory(error) => error.why(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::NoDevice => "load it: sudo modprobe lg, or sudo insmod build/lg.ko".into(),
            Self::Open(error) if error.raw_os_error() == Some(libc::EMFILE) => MORE_FILES.into(),
            Self::Open(_) | Self::BadMemory(_) => self.code().fix().to_string(),
            Self::Abi { .. } => "build and install the module and lg from the same source".into(),
            Self::Refused { .. } => "sudo dmesg may tell more".into(),
        }
    }
}

/// A VM. It ends when the last clone of its [`Arc`] is gone, or with the process.
pub struct Vm {
    device: File,
    info: lguest_info,
    /// Not read here, but the module uses it as long as `device` is open: it is dropped after that.
    _memory: Memory,
}

impl Vm {
    /// Makes a VM whose RAM is `memory`.
    pub fn new(memory: Memory) -> Result<Self, ModuleError> {
        let (device, info) = open()?;
        for region in memory.iter() {
            let region = lguest_memory {
                gpa: region.start_addr().0,
                size: region.len(),
                hva: region.as_ptr() as u64,
            };
            // SAFETY: ADD_MEMORY reads a struct lguest_memory. The region that it names stays
            // mapped as long as `device` is open, and nobody holds references into it: all access
            // is by copy through vm-memory.
            let result = unsafe { ioctl_with_ref(&device, LGUEST_IOCTL_ADD_MEMORY, &region) };
            check(result, "LGUEST_ADD_MEMORY")?;
        }
        Ok(Self {
            device,
            info,
            _memory: memory,
        })
    }

    /// From now on, hypercall NOTIFY for the register at `gpa` and `queue` signals `kick`.
    pub fn set_kick(&self, gpa: u64, queue: u32, kick: &EventFd) -> Result<(), ModuleError> {
        let notifyfd = lguest_notifyfd {
            gpa,
            queue,
            fd: kick.as_raw_fd(),
        };
        // SAFETY: SET_NOTIFYFD reads a struct lguest_notifyfd. The module holds the eventfd by
        // itself.
        let result = unsafe { ioctl_with_ref(&self.device, LGUEST_IOCTL_SET_NOTIFYFD, &notifyfd) };
        check(result, "LGUEST_SET_NOTIFYFD")
    }

    /// Raises interrupt line `line` of the Guest, below `LGUEST_LINES`.
    pub fn raise(&self, line: u32) -> io::Result<()> {
        // SAFETY: IRQ_LINE takes its argument by value.
        let result =
            unsafe { ioctl_with_val(&self.device, LGUEST_IOCTL_IRQ_LINE, c_ulong::from(line)) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// The shadow's way to `gva`, for kernel mode and user mode, while the vCPU does not run; and how many levels
    /// the Host's tables have.
    pub fn ways(&self, vcpu: u32, gva: u64) -> Result<([Way; 2], u32), ModuleError> {
        let mut ways = [Way::default(); 2];
        for (user_mode, way) in (0..).zip(&mut ways) {
            let mut walk = lguest_walk {
                vcpu,
                user_mode,
                gva,
                ..Default::default()
            };
            // SAFETY: GET_WALK reads and writes a struct lguest_walk.
            let result =
                unsafe { ioctl_with_mut_ref(&self.device, LGUEST_IOCTL_GET_WALK, &mut walk) };
            check(result, "LGUEST_GET_WALK")?;
            *way = walk.entries;
        }
        Ok((ways, self.info.paging_levels))
    }

    /// The frequency of the time stamp counter.
    pub fn tsc_khz(&self) -> u32 {
        self.info.tsc_khz
    }

    /// The time, and how it goes on. This may be interrupted, for long; of some tries, the one that took least time was not.
    pub fn clock(&self) -> Clock {
        let mut best = (u64::MAX, Clock::default());
        for _ in 0..5 {
            let (before, wall, after) = (time_stamp(), SystemTime::now(), time_stamp());
            let took = after.wrapping_sub(before);
            if took <= best.0 {
                let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
                let clock = Clock {
                    wall_ns: since.as_nanos() as u64,
                    tsc: before.wrapping_add(took / 2),
                    tsc_khz: self.tsc_khz(),
                };
                best = (took, clock);
            }
        }
        best.1
    }

    /// Has a vCPU recorded from now on, in a ring of so many pages. Before it runs.
    pub fn record(&self, vcpu: u32, pages: u32, calls: bool) -> Result<Ring, ModuleError> {
        let trace = lguest_trace {
            vcpu,
            flags: if calls { LGUEST_TRACE_CALLS } else { 0 },
            pages,
            pad: 0,
        };
        // SAFETY: SET_TRACE reads a struct lguest_trace.
        let result = unsafe { ioctl_with_ref(&self.device, LGUEST_IOCTL_SET_TRACE, &trace) };
        check(result, "LGUEST_SET_TRACE")?;
        let refused = |source: io::Error| ModuleError::Refused {
            call: "mmap",
            source,
        };
        let size = NonZero::new(PAGE * (1 + pages as usize)).expect("one at least");
        // SAFETY: a new mapping, of memory that nobody else has a reference to; it stays as long as the Ring.
        let map = unsafe {
            let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
            let offset = u64::from(vcpu) * LGUEST_TRACE_OFFSET;
            mmap(None, size, read, shared, &self.device, offset as i64)
        };
        let map = map.map_err(|errno| refused(errno.into()))?;
        let mut ring = Ring {
            map,
            size: size.get(),
            slots: 0,
        };
        ring.slots = ring.word(offset_of!(lguest_trace_head, slots));
        Ok(ring)
    }

    /// The last exits of a vCPU that does not run, from the oldest, but no more than so many; without times, and without what
    /// came of them. Fewer, or none, if the module does not say.
    pub fn exits(&self, vcpu: u32, most: u32) -> Vec<Event> {
        let mut exits = Vec::new();
        for back in 0..most {
            let mut exit = lguest_exit {
                vcpu,
                back,
                ..Default::default()
            };
            // SAFETY: GET_EXIT reads and writes a struct lguest_exit.
            let result =
                unsafe { ioctl_with_mut_ref(&self.device, LGUEST_IOCTL_GET_EXIT, &mut exit) };
            // SAFETY: It is made of integers alone, and without padding.
            let record: [u8; event::SIZE] = unsafe { mem::transmute(exit.record) };
            match Event::parse(&record) {
                Ok(exit) if result == 0 => exits.push(exit),
                _ => break,
            }
        }
        exits.reverse();
        exits
    }

    /// The event counters of one vCPU, while it does not run.
    pub fn vcpu_stats(&self, vcpu: u32) -> Result<lguest_stats, ModuleError> {
        let mut stats = lguest_vcpu_stats {
            vcpu,
            ..Default::default()
        };
        // SAFETY: GET_VCPU_STATS reads and writes a struct lguest_vcpu_stats.
        let result =
            unsafe { ioctl_with_mut_ref(&self.device, LGUEST_IOCTL_GET_VCPU_STATS, &mut stats) };
        check(result, "LGUEST_GET_VCPU_STATS")?;
        Ok(stats.stats)
    }

    /// The event counters of all vCPUs, while none of them runs.
    pub fn stats(&self) -> Result<lguest_stats, ModuleError> {
        let mut stats = lguest_stats::default();
        // SAFETY: GET_STATS writes a struct lguest_stats.
        let result =
            unsafe { ioctl_with_mut_ref(&self.device, LGUEST_IOCTL_GET_STATS, &mut stats) };
        check(result, "LGUEST_GET_STATS")?;
        Ok(stats)
    }
}

/// The record of a vCPU, as the module writes it.
///
/// `map` is a mapping of `size` bytes, a multiple of [`PAGE`], which goes with this and which only the module writes.
/// All access is to aligned words in it, each read once.
pub struct Ring {
    map: NonNull<c_void>,
    size: usize,
    slots: u64,
}

// SAFETY: the mapping has no tie to a thread.
unsafe impl Send for Ring {}

impl Ring {
    fn word(&self, offset: usize) -> u64 {
        assert!(offset % 8 == 0 && offset < self.size);
        // SAFETY: the word is in the mapping, and aligned, as was checked. The module may write it at any time, hence
        // volatile.
        unsafe {
            self.map
                .as_ptr()
                .byte_add(offset)
                .cast::<u64>()
                .read_volatile()
        }
    }

    /// The number of records that were written so far.
    pub fn written(&self) -> u64 {
        self.word(offset_of!(lguest_trace_head, written))
    }

    /// The number of those for which there was no room.
    pub fn lost(&self) -> u64 {
        self.word(offset_of!(lguest_trace_head, lost))
    }

    /// The record of this number, which has not been overwritten.
    pub fn record(&self, number: u64) -> [u8; event::SIZE] {
        let slot = PAGE + (number % self.slots) as usize * event::SIZE;
        let mut bytes = [0; event::SIZE];
        for (at, part) in bytes.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&self.word(slot + 8 * at).to_le_bytes());
        }
        bytes
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody has a reference into it.
        let _ = unsafe { munmap(self.map, self.size) };
    }
}

/// Asks the module what it is.
pub fn probe() -> Result<lguest_info, ModuleError> {
    open().map(|(_, info)| info)
}

/// Opens the device, which makes a VM, and checks that the module behind it speaks our language.
fn open() -> Result<(File, lguest_info), ModuleError> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ModuleError::NoDevice,
            _ => ModuleError::Open(error),
        })?;
    let mut info = lguest_info::default();
    // SAFETY: GET_INFO writes a struct lguest_info.
    let result = unsafe { ioctl_with_mut_ref(&device, LGUEST_IOCTL_GET_INFO, &mut info) };
    check(result, "LGUEST_GET_INFO")?;
    if info.abi_version != LGUEST_ABI_VERSION {
        return Err(ModuleError::Abi {
            theirs: info.abi_version,
            ours: LGUEST_ABI_VERSION,
        });
    }
    Ok((device, info))
}

/// The time stamp counter.
fn time_stamp() -> u64 {
    // SAFETY: every 64-bit CPU has it; where it is not for programs, the process ends here.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Turns what ioctl(2) returned into a result.
fn check(result: i32, call: &'static str) -> Result<(), ModuleError> {
    if result < 0 {
        if io::Error::last_os_error().raw_os_error() == Some(libc::EHWPOISON) {
            return Err(BadMemory.into());
        }
        return Err(ModuleError::Refused {
            call,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

/// The reasons for which a vCPU stops.
#[derive(Debug)]
#[allow(missing_docs)] // as in the header
pub enum Exit {
    Mmio {
        gpa: u64,
        insn: Vec<u8>,
    },
    Notify {
        gpa: u64,
        queue: u64,
    },
    Console {
        gpa: u64,
        len: u64,
    },
    Shutdown {
        kind: u64,
        arg: u64,
    },
    Death {
        reason: String,
    },
    Debug {
        vector: u32,
    },
    Trace,
    /// A signal came.
    Interrupted,
    /// The Guest has died or shut down, on another vCPU.
    Over,
}

/// A vCPU, run by the thread that owns it.
pub struct Vcpu {
    vm: Arc<Vm>,
    run: Box<lguest_run>,
}

impl Vcpu {
    /// Makes all vCPUs of `vm`: the first one starts at `entry`, and starts the others.
    pub fn make(vm: &Arc<Vm>, entry: &Entry, count: u32) -> Result<Vec<Self>, ModuleError> {
        (0..count)
            .map(|id| Self::new(vm.clone(), id, entry))
            .collect()
    }

    fn new(vm: Arc<Vm>, id: u32, entry: &Entry) -> Result<Self, ModuleError> {
        let vcpu = lguest_vcpu {
            id,
            pad: 0,
            cr3: entry.cr3,
            rip: if id == 0 { entry.rip } else { 0 },
            rsi: if id == 0 { entry.rsi } else { 0 },
        };
        let result = loop {
            // SAFETY: CREATE_VCPU reads a struct lguest_vcpu.
            let result = unsafe { ioctl_with_ref(&vm.device, LGUEST_IOCTL_CREATE_VCPU, &vcpu) };
            let error = io::Error::last_os_error();
            if result == 0 || error.kind() != io::ErrorKind::Interrupted {
                break result;
            }
        };
        check(result, "LGUEST_CREATE_VCPU")?;
        let mut run = Box::<lguest_run>::default();
        run.vcpu = id;
        // For a debugger, which looks before the first RUN.
        run.regs = lguest_regs {
            rip: entry.rip,
            rsi: entry.rsi,
            cr3: entry.cr3,
            rflags: RFLAGS_AT_ENTRY,
            ..Default::default()
        };
        Ok(Self { vm, run })
    }

    /// Runs until there is something for the Launcher to do.
    pub fn run(&mut self) -> Result<Exit, ModuleError> {
        let (result, hit) = bad_memory::during(|| {
            // SAFETY: RUN reads and writes a struct lguest_run.
            let result =
                unsafe { ioctl_with_mut_ref(&self.vm.device, LGUEST_IOCTL_RUN, &mut *self.run) };
            check(result, "LGUEST_RUN")
        });
        if hit {
            return Err(BadMemory.into());
        }
        match result {
            Err(ModuleError::Refused { source, .. }) if source.kind() == ErrorKind::Interrupted => {
                Ok(Exit::Interrupted)
            }
            Err(ModuleError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::ENXIO) =>
            {
                Ok(Exit::Over)
            }
            Err(error) => Err(error),
            Ok(()) => {
                self.run.set_regs = 0;
                self.exit()
            }
        }
    }

    fn exit(&self) -> Result<Exit, ModuleError> {
        let reasons = &self.run.__bindgen_anon_1;
        // SAFETY: all members of the union are integers and arrays of them, for which any bytes are
        // valid; `run` was all 0 before the module wrote to it. Which member the module has filled
        // in is what `exit` says.
        let (mmio, notify, console, shutdown, death, debug) = unsafe {
            (
                reasons.mmio,
                reasons.notify,
                reasons.console,
                reasons.shutdown,
                reasons.death,
                reasons.debug,
            )
        };
        Ok(match self.run.exit {
            LGUEST_EXIT_MMIO => {
                let length = mmio.insn.len().min(self.run.insn_len as usize);
                Exit::Mmio {
                    gpa: mmio.gpa,
                    insn: mmio.insn[..length].to_vec(),
                }
            }
            LGUEST_EXIT_NOTIFY => Exit::Notify {
                gpa: notify.gpa,
                queue: notify.queue,
            },
            LGUEST_EXIT_CONSOLE => Exit::Console {
                gpa: console.gpa,
                len: console.len,
            },
            LGUEST_EXIT_SHUTDOWN => Exit::Shutdown {
                kind: shutdown.kind,
                arg: shutdown.arg,
            },
            LGUEST_EXIT_DEATH => {
                let reason: Vec<u8> = death
                    .reason
                    .iter()
                    .map(|&c| c as u8)
                    .take_while(|&c| c != 0)
                    .collect();
                Exit::Death {
                    reason: String::from_utf8_lossy(&reason).into_owned(),
                }
            }
            LGUEST_EXIT_DEBUG => Exit::Debug {
                vector: debug.vector,
            },
            LGUEST_EXIT_TRACE => Exit::Trace,
            exit => {
                let source = io::Error::other(format!("unknown exit {exit}"));
                return Err(ModuleError::Refused {
                    call: "LGUEST_RUN",
                    source,
                });
            }
        })
    }

    /// The events for which LGUEST_EXIT_DEBUG is wanted: `LGUEST_DEBUG_*`.
    pub fn set_debug(&mut self, flags: u32) -> Result<(), ModuleError> {
        let debug = lguest_debug {
            vcpu: self.run.vcpu,
            flags,
            ..Default::default()
        };
        // SAFETY: SET_DEBUG reads a struct lguest_debug.
        let result = unsafe { ioctl_with_ref(&self.vm.device, LGUEST_IOCTL_SET_DEBUG, &debug) };
        check(result, "LGUEST_SET_DEBUG")
    }

    /// Its VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The registers at the last exit.
    pub fn regs(&self) -> lguest_regs {
        self.run.regs
    }

    /// Sets the registers from r15 to rsp with which the vCPU goes on.
    pub fn set_regs(&mut self, regs: lguest_regs) {
        self.run.regs = regs;
        self.run.set_regs = 1;
    }
}
