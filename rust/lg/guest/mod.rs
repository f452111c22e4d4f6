// SPDX-License-Identifier: GPL-2.0

//! One virtual CPU as its Guest has it, and what the Guest's kernel may do with it by whichever way.
//!
//! `lguest` is the ABI by which a patched kernel asks for that, `privileged` the instructions that one still
//! executes.

pub(crate) mod lguest;
pub(crate) mod privileged;

use crate::{
    blame::{
        Death,
        Stop, //
    },
    counts::Counts,
    inbox::{
        Inbox,
        START_WORDS, //
    },
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        foresight::Note,
        irq::Call,
        monitor::Monitor,
        paging,
        power::Life,
        shadow::{
            Flush,
            Resolved,
            Root, //
        },
    },
    mmu,
    shared::Shared,
    sys::{
        page::Wait,
        section::Xcr0,
        switcher::Switcher, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The way on after an exit was handled.
pub(crate) enum Next {
    /// Back into the Guest: its instruction is done, or an event was given to it.
    Resume,
    /// Back into the Guest, to the same instruction: nothing has happened that it could know of.
    Again,
    /// To the Launcher, with this `LGUEST_EXIT_*`; `run` is filled in.
    Launcher(u32),
}

/// Where the Guest wants its events. (Of its system calls the switcher knows.)
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    pub(crate) user: Gva,
    pub(crate) kernel: Gva,
}

/// Where a vCPU begins that another one has started.
pub(crate) struct Start {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) argument: u64,
    pub(crate) root: Gpa,
    /// As the other one has them.
    pub(crate) syscall_entry: u64,
    pub(crate) entries: Option<Entries>,
    pub(crate) nmi_entry: Gva,
    pub(crate) monitor: Option<Monitor>,
}

impl Start {
    /// As an inbox has it. Of entry points and a monitor that there are not, the words are 0.
    pub(crate) fn words(&self) -> [u64; START_WORDS] {
        let entries = self.entries.map(|to| [to.user.get(), to.kernel.get()]);
        let monitor = self.monitor.map(|of| [of.entry().get(), of.root().get()]);
        let [user, kernel] = entries.unwrap_or_default();
        let [monitor_entry, monitor_root] = monitor.unwrap_or_default();
        [
            self.rip,
            self.rsp,
            self.argument,
            self.root.get(),
            self.syscall_entry,
            user,
            kernel,
            self.nmi_entry.get(),
            monitor_entry,
            monitor_root,
        ]
    }

    pub(crate) fn from_words(words: [u64; START_WORDS]) -> Self {
        let [rip, rsp, argument, root, syscall_entry, user, kernel, nmi, monitor_entry, monitor_root] =
            words;
        let entries = Entries {
            user: Gva::new(user),
            kernel: Gva::new(kernel),
        };
        Self {
            rip,
            rsp,
            argument,
            root: Gpa::new(root),
            syscall_entry,
            // No entry point is in the lower half.
            entries: (user != 0).then_some(entries),
            nmi_entry: Gva::new(nmi),
            monitor: Monitor::new(Gva::new(monitor_entry), Gpa::new(monitor_root)),
        }
    }
}

/// The state of one virtual CPU.
pub(crate) struct Cpu {
    pub(crate) id: u32,
    pub(crate) switcher: Switcher,
    pub(crate) xcr0: Xcr0,
    /// CR3: the Guest's current root, and the shadow's for it.
    pub(crate) root: Root,
    /// The walk of a fault that is still to be dealt with.
    pub(crate) walked: Option<Resolved>,
    pub(crate) entries: Option<Entries>,
    /// Where it wants its NMIs; 0: they are lost.
    pub(crate) nmi_entry: Gva,
    /// It is at an NMI, so another one has to wait.
    pub(crate) in_nmi: bool,
    pub(crate) monitor: Option<Monitor>,
    /// The life that it goes on with: if that is over, nothing of it runs.
    pub(crate) life: Life,
    /// It is stepped, or there is a record: [`Cpu::watch`].
    pub(crate) watched: bool,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) counts: Counts,
}

impl Cpu {
    /// After a change of what is asked for: does anybody look at each exit?
    pub(crate) fn watch(&mut self) {
        self.watched = self.switcher.stepping() || self.counts.recording();
    }

    /// Tells the switcher what [`root`](Self::root) is.
    pub(crate) fn enter_root(&mut self) {
        self.switcher
            .set_roots(self.root.kernel(), self.root.user());
        *self.switcher.note() = Note::default();
        self.counts.root();
    }

    /// CR3 as the Guest writes it: an address, a PCID, and bit 63 to keep what is cached.
    pub(crate) fn write_cr3(&mut self, cr3: u64, wait: Wait) -> Result<(), Stop> {
        let root = Gpa::new(cr3 & paging::ADDR);
        if !self.shared.ram().contains(root) {
            return Err(Death::BadRoot(root).into());
        }
        self.shared
            .load(&mut self.root, &self.inbox, root, cr3 >> 63 != 0, wait)?;
        self.enter_root();
        Ok(())
    }

    /// Forgets what the Guest flushes.
    pub(crate) fn flush(&mut self, what: Flush, wait: Wait) -> Result<(), Stop> {
        self.shared.flush((&self.root, &self.inbox), what, wait)?;
        self.switcher.note().flush(what);
        Ok(())
    }

    /// Forgets all of a root.
    pub(crate) fn drop_root(&mut self, root: Gpa, wait: Wait) -> Result<(), Stop> {
        self.shared.shadow(wait)?.drop_root(root);
        if root == self.root.gpa() {
            *self.switcher.note() = Note::default();
        }
        Ok(())
    }

    /// Puts a monitor below the Guest's kernel. From the next section on, the switcher knows of it.
    pub(crate) fn set_monitor(&mut self, monitor: Monitor) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let mut shadow = shared.shadow(Wait::Allowed)?;
        shadow.set_monitor(&self.root, monitor);
        self.set_monitor_entry(monitor);
        Ok(())
    }

    /// This vCPU's SYSCALLs of the kernel go where `monitor` says, whose root is known.
    pub(crate) fn set_monitor_entry(&mut self, monitor: Monitor) {
        self.switcher.set_monitor_entry(monitor.entry());
        self.monitor = Some(monitor);
    }

    /// Is it on, in the life that it goes on with?
    pub(crate) fn is_alive(&self) -> bool {
        self.inbox.power.is(self.life)
    }

    /// Waits for an interrupt. `EINTR` when a signal came first: the Guest halts again afterwards. May sleep.
    pub(crate) fn halt(&mut self) -> Result<(), Stop> {
        self.counts.halt();
        self.inbox.sleep(self.life, Inbox::wakes);
        if !self.inbox.wakes() && self.is_alive() {
            return Err(EINTR.into());
        }
        Ok(())
    }

    /// Waits for a kick or an NMI, or with `interrupts` for one of those. `EINTR` as above. May sleep.
    pub(crate) fn wait(&mut self, interrupts: bool) -> Result<(), Stop> {
        let ready = |inbox: &Inbox| inbox.ends_wait(interrupts);
        self.inbox.sleep(self.life, ready);
        if !ready(&self.inbox) && self.is_alive() {
            return Err(EINTR.into());
        }
        self.inbox.answer(Call::Kick);
        Ok(())
    }

    /// Reads code at `gva` as the Guest's current mode would fetch it; returns how many bytes could be read.
    /// May sleep.
    pub(crate) fn fetch(&mut self, gva: Gva, buf: &mut [u8]) -> usize {
        let user = self.switcher.user_mode();
        let roots = (self.root.gpa(), self.monitor.as_ref());
        mmu::fetch(self.shared.ram(), &self.inbox.looker, roots, gva, user, buf)
    }
}
