// SPDX-License-Identifier: GPL-2.0
//! A machine that runs, as others see it: what a [`Query`] asks of it.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::{self, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lg_core::addr::{Gpa, Gva};
use lg_core::paging::{self, Access};
use lguest_abi::lguest_regs;
use nix::sys::resource::{getrusage, UsageWho};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use vm_memory::{Bytes, GuestAddress};

use crate::image::Image;
use crate::machine::gdb::memory::Tables;
use crate::machine::module::Vm;
use crate::machine::pagetable::PageTable;
use crate::machine::pause::Pause;
use crate::machine::recorder::{Tail, LAST};
use crate::memory::Memory;
use crate::plan::Plan;
use crate::queries::Query;
use crate::report::stats;
use crate::trace::file::{Header, Trace};

/// Why there is no answer.
const CANNOT_STOP: &str = "the guest's vCPU cannot be stopped";
/// What there is of a command, in characters.
const COMMAND_MAX: usize = 200;

/// What can be seen of a machine while it runs, and afterwards.
#[derive(Clone)]
pub struct View {
    pub(super) vm: Arc<Vm>,
    /// Of each vCPU, in the order of their numbers.
    pub(super) pauses: Vec<Arc<Pause>>,
    pub(super) memory: Memory,
    pub(super) about: About,
    pub(super) tails: Vec<Tail>,
}

/// What runs, and since when.
#[derive(Clone, Debug)]
pub(super) struct About {
    kernel: Kernel,
    command: String,
    memory: u64,
    began: Instant,
}

impl About {
    /// The Guest of `plan`, whose lg has begun then.
    pub(super) fn of(plan: &Plan, began: Instant) -> Self {
        let command = plan.command().join(" ");
        Self {
            kernel: Kernel::of(&plan.load.image),
            command: command.chars().take(COMMAND_MAX).collect(),
            memory: plan.memory,
            began,
        }
    }

    fn now(&self) -> Guest {
        Guest {
            kernel: self.kernel.clone(),
            command: self.command.clone(),
            memory: self.memory,
            age: self.began.elapsed().as_secs_f64(),
            cpu: cpu(),
        }
    }
}

/// Seconds that this process has had of the CPUs.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    usage.map_or(0.0, |usage| {
        let both = usage.user_time() + usage.system_time();
        both.num_microseconds() as f64 / 1e6
    })
}

/// A Guest, as it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its command, or the beginning of a long one; empty for a shell or a bare Guest.
    pub command: String,
    /// Its RAM, in bytes.
    pub memory: u64,
    /// Seconds since its lg began.
    pub age: f64,
    /// Seconds that its lg has had of the CPUs.
    pub cpu: f64,
}

/// The kernel that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Its file.
    pub path: PathBuf,
    /// Its build ID in hexadecimal, if it has one.
    pub build_id: Option<String>,
}

impl Kernel {
    /// A build ID as it is written here.
    pub fn id(build_id: Option<Vec<u8>>) -> Option<String> {
        let mut text = String::new();
        for byte in build_id? {
            let _ = write!(text, "{byte:02x}");
        }
        Some(text)
    }

    /// That of `image`.
    fn of(image: &Image) -> Self {
        let path = path::absolute(&image.path).unwrap_or(image.path.clone());
        Self {
            // JSON has no other names than text.
            path: path.to_string_lossy().into_owned().into(),
            build_id: Self::id(image.build_id()),
        }
    }
}

impl View {
    /// The answer to a question; why there is none otherwise. The Guest stands still meanwhile.
    pub fn answer(&self, query: &Query) -> Result<Value, String> {
        match *query {
            Query::Stats => {
                let mut stats = None;
                if !all(&self.pauses, &mut || stats = Some(self.vm.stats())) {
                    return Err(CANNOT_STOP.into());
                }
                let stats = stats.ok_or(CANNOT_STOP)?;
                let stats = stats.map_err(|error| error.to_string())?;
                let counters = stats::counters(&stats).into_iter();
                let counters = counters.map(|(name, value)| (name, json!(value)));
                Ok(counters.collect::<Map<_, _>>().into())
            }
            Query::Guest => Ok(json!(self.about.now())),
            Query::Walk { gva, vcpu } => self.walk(vcpu, gva).map(|table| json!(table)),
        }
    }

    /// An address in the tables that the vCPU is on which [`View::regs`] are of.
    ///
    /// # Errors
    ///
    /// In words: the vCPU cannot be stopped.
    pub fn page_table(&self, gva: u64) -> Result<PageTable, String> {
        self.walk(self.last(), gva)
    }

    fn walk(&self, vcpu: u32, gva: u64) -> Result<PageTable, String> {
        let Some(pause) = self.pauses.get(vcpu as usize) else {
            return Err(format!("the guest has no vCPU {vcpu}"));
        };
        let table = pause.look(|regs| page_table(&self.vm, vcpu, &self.memory, regs.cr3, gva));
        table.ok_or_else(|| CANNOT_STOP.into())
    }

    /// The registers at the last exit of the vCPU on which the Guest has ended, or else of the first.
    pub fn regs(&self) -> Option<lguest_regs> {
        self.pauses.get(self.last() as usize)?.look(|regs| *regs)
    }

    fn last(&self) -> u32 {
        let ended = self.pauses.iter().position(|pause| pause.has_ended());
        ended.unwrap_or(0) as u32
    }

    /// The eight bytes at `gva` in the tables at `cr3`, whoever may use them there.
    pub fn read(&self, cr3: u64, gva: u64) -> Option<u64> {
        let root = Gpa::new(cr3 & paging::ADDR);
        let byte = |at: u64| {
            let gva = Gva::new(gva.wrapping_add(at));
            let tables = Tables(&self.memory);
            let page = paging::walk_quiet(&tables, root, gva, Access::default()).ok()?;
            let at = GuestAddress(page.gpa.get() | gva.offset());
            self.memory.read_obj::<u8>(at).ok()
        };
        let mut bytes = [0; 8];
        for (at, place) in (0..).zip(&mut bytes) {
            *place = byte(at)?;
        }
        Some(u64::from_le_bytes(bytes))
    }

    /// The kernel that runs.
    pub fn kernel(&self) -> &Kernel {
        &self.about.kernel
    }

    /// The last exits of the vCPU which [`View::regs`] are of: the end of its record, once it is over, or else what the
    /// module keeps of them always.
    pub fn exits(&self) -> Trace {
        let recorded = self.tails.get(self.last() as usize);
        let recorded = recorded.and_then(|tail| tail.get());
        recorded.cloned().unwrap_or_else(|| Trace {
            header: Header {
                tsc_khz: self.vm.tsc_khz(),
                build_id: Vec::new(),
            },
            events: self.vm.exits(self.last(), LAST),
            several: false,
            cut_off: false,
        })
    }
}

/// Calls `look` while all of these stand still, one inside of the other; `false` if one does not.
fn all(pauses: &[Arc<Pause>], look: &mut dyn FnMut()) -> bool {
    match pauses.split_first() {
        None => {
            look();
            true
        }
        Some((first, rest)) => first.look(|_| all(rest, look)).unwrap_or(false),
    }
}

/// What `gva` is in the tables at `cr3` and in the shadow of `vm` on `vcpu`, which does not run.
pub fn page_table(vm: &Vm, vcpu: u32, memory: &Memory, cr3: u64, gva: u64) -> PageTable {
    let table = PageTable::look(&Tables(memory), cr3, gva);
    match vm.ways(vcpu, gva) {
        Ok((ways, levels)) => table.beside(ways, levels),
        // Without a vCPU there is none.
        Err(_) => table,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::image::tests::{elf, good_notes};

    /// Whatever the file is called, who asks for it is answered.
    #[test]
    fn a_guest_is_told_as_text() {
        let mut image = Image::parse(elf(&good_notes())).unwrap();
        image.path = OsStr::from_bytes(b"/boot/\xff").into();
        let about = About {
            kernel: Kernel::of(&image),
            command: "true".into(),
            memory: 4 << 20,
            began: Instant::now(),
        };
        let told = serde_json::to_value(about.now()).unwrap();
        assert_eq!(told["kernel"]["path"], json!("/boot/\u{fffd}"));
        let guest: Guest = serde_json::from_value(told).unwrap();
        assert!(guest.age >= 0.0 && guest.cpu > 0.0, "{guest:?}");
    }
}
