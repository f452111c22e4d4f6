// SPDX-License-Identifier: GPL-2.0
//! /dev/lguest without a Launcher in between: just enough to boot a bare Guest, and every ioctl for those who want to
//! say something silly.

use lguest_abi as abi;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::Endianness::Little;
use std::fs::File;
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

/// The message of a failed test.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The places of the Launcher's boot data (GPAs).
const BOOT_PARAMS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x20000;
const TABLES: u64 = 0x30000;

/// Memory of this process that can be a Guest's RAM.
pub struct Ram {
    start: *mut u8,
    size: usize,
}

// SAFETY: the pointer is to shared memory of the process, which every access copies from or to.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// `size` bytes of zeroed shared memory.
    pub fn new(size: usize) -> io::Result<Self> {
        Self::map(size, libc::MAP_SHARED)
    }

    /// `size` bytes of zeroed memory that is this process's alone.
    pub fn private(size: usize) -> io::Result<Self> {
        Self::map(size, libc::MAP_PRIVATE)
    }

    fn map(size: usize, kind: i32) -> io::Result<Self> {
        // SAFETY: a new mapping overlaps nothing.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                kind | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            size,
        })
    }

    /// The address in this process (the Host's `hva`).
    pub fn hva(&self) -> u64 {
        self.start as u64
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Copies `bytes` to the GPA `gpa`.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.check(gpa, bytes.len());
        // SAFETY: checked to be inside the mapping; the Guest's view of memory is never a reference.
        unsafe { ptr::copy(bytes.as_ptr(), self.start.add(gpa as usize), bytes.len()) };
    }

    /// Copies `len` bytes from the GPA `gpa`.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        self.check(gpa, len);
        let mut bytes = vec![0; len];
        // SAFETY: as in `write`.
        unsafe { ptr::copy(self.start.add(gpa as usize), bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Takes `len` bytes at GPA `gpa` out of the process, Guest running or not.
    pub fn unmap(&self, gpa: u64, len: usize) {
        self.check(gpa, len);
        // SAFETY: inside our own mapping; later accesses of ours there would fault, and no test makes one.
        unsafe { libc::munmap(self.start.add(gpa as usize).cast(), len) };
    }

    fn check(&self, gpa: u64, len: usize) {
        let end = usize::try_from(gpa).unwrap().checked_add(len).unwrap();
        assert!(
            end <= self.size,
            "GPA {gpa:#x}+{len:#x} is past the end of RAM"
        );
    }

    fn write_u64(&self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    fn read_u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa, 8).try_into().unwrap())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used by nothing after this.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

/// The device: one open file is one VM.
#[derive(Debug)]
pub struct Device(pub File);

impl Device {
    /// Opens /dev/lguest.
    pub fn open() -> io::Result<Self> {
        Ok(Self(
            File::options().read(true).write(true).open("/dev/lguest")?,
        ))
    }

    /// Any ioctl with any argument.
    pub fn ioctl(&self, request: u64, argument: u64) -> io::Result<i32> {
        // SAFETY: what the kernel writes through `argument` is up to the caller; tests pass their own objects, or
        // addresses where nothing of Rust's is.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) } {
            result if result < 0 => Err(Error::last_os_error()),
            result => Ok(result),
        }
    }

    /// An ioctl on a structure.
    pub fn ioctl_on<T>(&self, request: u64, argument: &mut T) -> io::Result<i32> {
        self.ioctl(request, ptr::from_mut(argument) as u64)
    }

    /// Makes `size` bytes at `hva` the Guest's RAM at `gpa`.
    pub fn add_memory(&self, gpa: u64, size: u64, hva: u64) -> io::Result<i32> {
        let mut memory = abi::lguest_memory { gpa, size, hva };
        self.ioctl_on(abi::LGUEST_IOCTL_ADD_MEMORY, &mut memory)
    }

    /// Makes the vCPU.
    pub fn create_vcpu(&self, cr3: u64, rip: u64, rsi: u64) -> io::Result<i32> {
        let mut vcpu = abi::lguest_vcpu {
            id: 0,
            pad: 0,
            cr3,
            rip,
            rsi,
        };
        loop {
            match self.ioctl_on(abi::LGUEST_IOCTL_CREATE_VCPU, &mut vcpu) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Runs the vCPU until it exits.
    pub fn run(&self) -> io::Result<abi::lguest_run> {
        let mut run = abi::lguest_run::default();
        self.ioctl_on(abi::LGUEST_IOCTL_RUN, &mut run)?;
        Ok(run)
    }

    /// Raises interrupt line `line`.
    pub fn irq_line(&self, line: u64) -> io::Result<i32> {
        self.ioctl(abi::LGUEST_IOCTL_IRQ_LINE, line)
    }

    /// Sets what a debugger asks for.
    pub fn set_debug(&self, vcpu: u32, flags: u32, reserved: [u64; 2]) -> io::Result<i32> {
        let mut debug = abi::lguest_debug {
            vcpu,
            flags,
            reserved,
        };
        self.ioctl_on(abi::LGUEST_IOCTL_SET_DEBUG, &mut debug)
    }

    /// The counters.
    pub fn stats(&self) -> io::Result<abi::lguest_stats> {
        let mut stats = abi::lguest_stats::default();
        self.ioctl_on(abi::LGUEST_IOCTL_GET_STATS, &mut stats)?;
        Ok(stats)
    }
}

/// A VM with a bare Guest loaded, ready to run.
pub struct Vm {
    /// The open device.
    pub device: Device,
    /// Its RAM, from GPA 0.
    pub ram: Ram,
}

/// The state in which a Guest starts.
#[derive(Clone, Copy)]
pub struct Start {
    cr3: u64,
    rip: u64,
}

/// The end of a Guest.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It powered off with this status.
    PowerOff(u64),
    /// It asked for a restart.
    Restart,
    /// It panicked.
    Panic(String),
    /// The Host killed it, with this reason.
    Death(String),
}

impl Vm {
    /// Loads the bare Guest at `path` into `size` bytes of RAM (a multiple of 2 MiB, at most 1 GiB), as the header says.
    pub fn load(path: &Path, size: usize, command_line: &str) -> Result<Self> {
        Self::load_into(Ram::new(size)?, path, command_line)
    }

    /// The same, in RAM that is there already.
    pub fn load_into(ram: Ram, path: &Path, command_line: &str) -> Result<Self> {
        let (vm, start) = Self::prepare_in(ram, path, command_line)?;
        vm.create_vcpu(start)?;
        Ok(vm)
    }

    /// The same, but without a vCPU, which is to start there.
    pub fn prepare(path: &Path, size: usize, command_line: &str) -> Result<(Self, Start)> {
        Self::prepare_in(Ram::new(size)?, path, command_line)
    }

    fn prepare_in(ram: Ram, path: &Path, command_line: &str) -> Result<(Self, Start)> {
        let (cr3, rip) = load_image(&ram, &std::fs::read(path)?)?;
        write_boot_params(&ram, command_line);
        let device = Device::open().map_err(|error| format!("/dev/lguest: {error}"))?;
        device.add_memory(0, ram.size(), ram.hva())?;
        Ok((Self { device, ram }, Start { cr3, rip }))
    }

    /// Makes the vCPU.
    pub fn create_vcpu(&self, start: Start) -> io::Result<i32> {
        self.device.create_vcpu(start.cr3, start.rip, BOOT_PARAMS)
    }

    /// Runs it to its end; prints what it prints.
    pub fn run(&self) -> Result<End> {
        loop {
            if let Some(end) = self.step()? {
                return Ok(end);
            }
        }
    }

    /// Runs it to its next exit, and handles that.
    pub fn step(&self) -> Result<Option<End>> {
        self.step_with(|text| print!("{text}"))
    }

    /// The same, but what it prints goes to `print`.
    pub fn step_with(&self, print: impl FnOnce(String)) -> Result<Option<End>> {
        let run = match self.device.run() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            run => run?,
        };
        // SAFETY: the exit says which member of the union the Host wrote, and all are plain numbers.
        let exit = unsafe {
            match run.exit {
                abi::LGUEST_EXIT_CONSOLE => {
                    let console = run.__bindgen_anon_1.console;
                    let text = self.ram.read(console.gpa, console.len as usize);
                    print(String::from_utf8_lossy(&text).into_owned());
                    return Ok(None);
                }
                abi::LGUEST_EXIT_SHUTDOWN => Ok(run.__bindgen_anon_1.shutdown),
                abi::LGUEST_EXIT_DEATH => Err(run.__bindgen_anon_1.death.reason),
                abi::LGUEST_EXIT_MMIO => {
                    return Err(format!("MMIO at {:#x}", run.__bindgen_anon_1.mmio.gpa).into())
                }
                other => return Err(format!("an exit of kind {other}").into()),
            }
        };
        Ok(Some(match exit {
            Err(reason) => End::Death(text_of(&reason.map(|c| c as u8))),
            Ok(shutdown) => match u32::try_from(shutdown.kind)? {
                abi::LGUEST_SHUTDOWN_POWEROFF => End::PowerOff(shutdown.arg),
                abi::LGUEST_SHUTDOWN_RESTART => End::Restart,
                abi::LGUEST_SHUTDOWN_PANIC => End::Panic(self.text_at(shutdown.arg)),
                other => return Err(format!("a shutdown of kind {other}").into()),
            },
        }))
    }

    /// The text at GPA `gpa` up to a NUL.
    pub fn text_at(&self, gpa: u64) -> String {
        match self.ram.size().checked_sub(gpa) {
            Some(left) if gpa != 0 => text_of(&self.ram.read(gpa, left.min(1024) as usize)),
            _ => String::new(),
        }
    }
}

/// Keeps the calling thread on one CPU: on this one or, where there are not so many, on the last.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: takes a number.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } as usize;
    // SAFETY: an empty set, which is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of ours, which the call reads.
    match unsafe {
        libc::CPU_SET(cpu.min(online - 1), &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// The text in `bytes` up to a NUL.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Copies the image to its place and makes the page tables of the entry point: their root, and the entry.
fn load_image(ram: &Ram, data: &[u8]) -> Result<(u64, u64)> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 1 << 7;

    let mut tables = Tables {
        ram,
        next: TABLES + 4096,
    };
    for gpa in (0..ram.size()).step_by(2 << 20) {
        for gva in [gpa, abi::LGUEST_PAGE_OFFSET as u64 + gpa] {
            ram.write_u64(tables.entry(gva, 2), gpa | PRESENT_WRITE | LARGE);
        }
    }

    let mut entry = None;
    let file = FileHeader64::parse(data)?;
    for segment in file.program_headers(Little, data)? {
        let (start, gva) = (segment.p_paddr(Little), segment.p_vaddr(Little));
        if segment.p_type(Little) == PT_LOAD {
            let bytes = segment
                .data(Little, data)
                .map_err(|()| "a segment is not in the file")?;
            ram.write(start, bytes);
            for offset in (0..segment.p_memsz(Little)).step_by(4096) {
                ram.write_u64(
                    tables.entry(gva + offset, 1),
                    (start + offset) | PRESENT_WRITE,
                );
            }
        }
        if let Some(mut notes) = segment.notes(Little, data)? {
            while let Some(note) = notes.next()? {
                if note.name() == b"Lguest" && note.n_type(Little).0 == abi::LGUEST_NOTE_ENTRY {
                    entry = Some(u64::from_le_bytes(note.desc()[8..16].try_into()?));
                }
            }
        }
    }
    assert!(
        tables.next <= 1 << 20,
        "the page tables do not fit below 1 MiB"
    );
    Ok((TABLES, entry.ok_or("there is no note \"Lguest\"")?))
}

/// 4-level tables under construction, the root at TABLES.
struct Tables<'a> {
    ram: &'a Ram,
    next: u64,
}

impl Tables<'_> {
    /// GPA of the entry for `gva` in the table of `level`, with the tables above it.
    fn entry(&mut self, gva: u64, level: u32) -> u64 {
        const PRESENT_WRITE: u64 = 3;
        let index = |level| ((gva >> (12 + 9 * (level - 1))) & 511) * 8;
        let mut table = TABLES;
        for above in (level + 1..=4).rev() {
            let slot = table + index(above);
            if self.ram.read_u64(slot) == 0 {
                self.ram.write_u64(slot, self.next | PRESENT_WRITE);
                self.next += 4096;
            }
            table = self.ram.read_u64(slot) & !0xfff;
        }
        table + index(level)
    }
}

fn write_boot_params(ram: &Ram, command_line: &str) {
    const E820_RAM: u32 = 1;
    let mut params = abi::boot_params::default();
    params.hdr.hardware_subarch = abi::LGUEST_SUBARCH;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.e820_entries = 1;
    params.e820_table[0] = abi::boot_e820_entry {
        addr: 0,
        size: ram.size(),
        type_: E820_RAM,
    };
    // SAFETY: boot_params is plain numbers without padding (it is packed).
    let bytes = unsafe {
        std::slice::from_raw_parts(ptr::from_ref(&params).cast::<u8>(), size_of_val(&params))
    };
    ram.write(BOOT_PARAMS, bytes);
    ram.write(COMMAND_LINE, command_line.as_bytes());
}
