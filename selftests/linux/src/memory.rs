// SPDX-License-Identifier: GPL-2.0
//! Virtual memory: copy on write, protections, mappings that move, change and go.

use crate::sys::{check, handle, in_child, on_xen, spawn, wait, Map, Random, PAGE, RW};
use crate::Test;
use std::os::fd::FromRawFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub(crate) const TESTS: &[Test] = &[
    ("copy on write", copy_on_write),
    ("copy on write, generation after generation", generations),
    ("shared memory", shared),
    ("protections", protections),
    ("mprotect, often", mprotect_often),
    ("madvise", madvise),
    ("mremap", mremap),
    ("files", files),
    ("many mappings", many_mappings),
    ("large pages", large_pages),
    ("generated code", generated_code),
    ("a random walk", random_walk),
];

const PAGES: usize = 2048;

fn copy_on_write() {
    let map = Map::private(PAGES * PAGE);
    (0..PAGES).for_each(|i| map.set(i * PAGE, i as u64));
    for round in 0..5 {
        let child = spawn(|| {
            (0..PAGES)
                .for_each(|i| assert_eq!(map.get(i * PAGE), i as u64, "what the child inherits"));
            (0..PAGES).for_each(|i| map.set(i * PAGE, !i as u64));
            (0..PAGES)
                .for_each(|i| assert_eq!(map.get(i * PAGE), !i as u64, "what the child wrote"));
            0
        });
        // Both write at the same time.
        (0..PAGES).for_each(|i| map.set(i * PAGE + 8, round));
        assert_eq!(wait(child), 0);
        (0..PAGES).for_each(|i| {
            assert_eq!(
                (map.get(i * PAGE), map.get(i * PAGE + 8)),
                (i as u64, round)
            )
        });
    }
}

/// Each child forks the next, changes what it has, and finds it so when its child is gone.
fn generations() {
    fn generation(map: &Map, number: u64) -> i32 {
        (0..64).for_each(|i| assert_eq!(map.get(i * PAGE), number));
        if number == 30 {
            return 0;
        }
        (0..64).for_each(|i| map.set(i * PAGE, number + 1));
        let status = in_child(|| generation(map, number + 1));
        (0..64).for_each(|i| {
            assert_eq!(
                map.get(i * PAGE),
                number + 1,
                "a child changed its parent's page"
            )
        });
        status
    }
    let map = Map::private(64 * PAGE);
    assert_eq!(in_child(|| generation(&map, 0)), 0);
    assert_eq!(map.get(0), 0);
}

fn shared() {
    let map = Map::shared(64 * PAGE);
    let child = spawn(|| {
        for i in 0..64 {
            while map.get(i * PAGE) != 1 {
                std::thread::yield_now();
            }
            map.set(i * PAGE, 2);
        }
        0
    });
    for i in 0..64 {
        map.set(i * PAGE, 1);
        while map.get(i * PAGE) != 2 {
            std::thread::yield_now();
        }
    }
    assert_eq!(wait(child), 0);
}

static FAULTS: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicUsize = AtomicUsize::new(0);

/// Makes the page accessible, counts, and lets the instruction run again.
extern "C" fn repair(_: i32, info: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    // SAFETY: the kernel fills it in for SIGSEGV.
    let address = unsafe { (*info).si_addr() } as usize;
    LAST.store(address, Relaxed);
    FAULTS.fetch_add(1, Relaxed);
    // SAFETY: the page that faulted, which belongs to the test's mapping or to nothing (then this fails, and it ends).
    if unsafe { libc::mprotect((address & !(PAGE - 1)) as *mut libc::c_void, PAGE, RW) } != 0 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(98) };
    }
}

fn protections() {
    handle(libc::SIGSEGV, repair);
    let map = Map::private(16 * PAGE);
    for (protection, read_faults) in [(libc::PROT_NONE, 1), (libc::PROT_READ, 0)] {
        for i in 0..16 {
            let offset = i * PAGE + 8 * i;
            map.set(offset, 5);
            map.protect(i * PAGE, PAGE, protection);
            let before = FAULTS.load(Relaxed);
            assert_eq!(map.get(offset), 5);
            assert_eq!(
                FAULTS.load(Relaxed) - before,
                read_faults,
                "faults of a read"
            );
            map.protect(i * PAGE, PAGE, protection);
            map.set(offset, 6);
            assert_eq!(
                FAULTS.load(Relaxed) - before,
                read_faults + 1,
                "faults of a write"
            );
            assert_eq!(LAST.load(Relaxed), map.start() as usize + offset, "si_addr");
        }
    }
    // What is not a mapping, what is the kernel's, and what is not an address.
    for address in [
        8usize,
        0xffff_ffff_8100_0000,
        0xffff_8780_0000_0000,
        0x8000_0000_0000,
    ] {
        let status = in_child(|| {
            // SAFETY: default action: the child ends here.
            unsafe {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                (address as *const u64).read_volatile() as i32
            }
        });
        assert_eq!(status, 128 + libc::SIGSEGV, "a read of {address:#x}");
    }
    // Code in a data page.
    let status = in_child(|| {
        // SAFETY: default action: the child ends here.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            *map.start() = 0xc3;
            std::mem::transmute::<*mut u8, extern "C" fn()>(map.start())();
        }
        0
    });
    assert_eq!(status, 128 + libc::SIGSEGV, "a page that is not executable");
}

fn mprotect_often() {
    handle(libc::SIGSEGV, repair);
    let map = Map::private(64 * PAGE);
    let mut random = Random(7);
    for round in 0..3000u64 {
        let (at, pages) = (random.below(60), random.below(4) + 1);
        map.protect(
            at * PAGE,
            pages * PAGE,
            if round % 2 == 0 {
                libc::PROT_READ
            } else {
                libc::PROT_NONE
            },
        );
        let before = FAULTS.load(Relaxed);
        (at..at + pages).for_each(|i| map.set(i * PAGE, round));
        assert_eq!(
            FAULTS.load(Relaxed) - before,
            pages,
            "each page faults once, round {round}"
        );
    }
}

fn madvise() {
    let map = Map::private(PAGES * PAGE);
    for round in 1..5 {
        (0..PAGES).for_each(|i| map.set(i * PAGE, round));
        map.advise(PAGE, (PAGES - 2) * PAGE, libc::MADV_DONTNEED);
        assert_eq!((map.get(0), map.get((PAGES - 1) * PAGE)), (round, round));
        (1..PAGES - 1).for_each(|i| assert_eq!(map.get(i * PAGE), 0, "a page that was given back"));
    }
}

fn mremap() {
    let mut len = 16 * PAGE;
    let map = Map::private(len);
    let mut start = map.start();
    std::mem::forget(map);
    // SAFETY: one mapping, which moves and grows, and which nobody else knows.
    unsafe {
        (0..16).for_each(|i| start.add(i * PAGE).write_volatile(i as u8 + 1));
        for _ in 0..20 {
            // Something in the way makes it move.
            let blocker = libc::mmap(
                start.add(len).cast(),
                PAGE,
                RW,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            let moved = libc::mremap(start.cast(), len, len + 64 * PAGE, libc::MREMAP_MAYMOVE);
            assert_ne!(moved, libc::MAP_FAILED, "mremap");
            (start, len) = (moved.cast(), len + 64 * PAGE);
            (0..16).for_each(|i| {
                assert_eq!(
                    start.add(i * PAGE).read_volatile(),
                    i as u8 + 1,
                    "a page that moved"
                )
            });
            assert_eq!(start.add(len - PAGE).read_volatile(), 0, "a new page");
            libc::munmap(blocker, PAGE);
        }
        libc::munmap(start.cast(), len);
    }
}

fn files() {
    // SAFETY: a new descriptor.
    let fd = check("memfd_create", unsafe {
        libc::memfd_create(c"test".as_ptr(), 0)
    }) as i32;
    // SAFETY: ours alone.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.set_len(64 * PAGE as u64).expect("ftruncate");
    let (one, two) = (
        Map::new(64 * PAGE, libc::MAP_SHARED, fd),
        Map::new(64 * PAGE, libc::MAP_SHARED, fd),
    );
    let private = Map::new(64 * PAGE, libc::MAP_PRIVATE, fd);
    for i in 0..64 {
        one.set(i * PAGE, i as u64);
        assert_eq!(
            (two.get(i * PAGE), private.get(i * PAGE)),
            (i as u64, i as u64),
            "one file, three mappings"
        );
        private.set(i * PAGE, 1000);
        assert_eq!(
            (one.get(i * PAGE), two.get(i * PAGE)),
            (i as u64, i as u64),
            "a private page is private"
        );
    }
    let mut word = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 5 * PAGE as u64).expect("read");
    assert_eq!(
        u64::from_le_bytes(word),
        5,
        "read() sees what a mapping wrote"
    );
    file.set_len(32 * PAGE as u64).expect("ftruncate");
    let status = in_child(|| one.get(40 * PAGE) as i32);
    assert_eq!(status, 128 + libc::SIGBUS, "past the end of the file");
}

/// Every other page, so that they cannot be merged.
fn many_mappings() {
    for _ in 0..3 {
        let maps: Vec<Map> = (0..1000).map(|_| Map::private(2 * PAGE)).collect();
        for (i, map) in maps.iter().enumerate() {
            map.set(0, i as u64);
            map.protect(PAGE, PAGE, libc::PROT_NONE);
        }
        maps.iter()
            .enumerate()
            .for_each(|(i, map)| assert_eq!(map.get(0), i as u64));
    }
}

fn large_pages() {
    const LARGE: usize = 2 << 20;
    // Linux does without where there is less than 512 MiB of memory. By Xen's ABI there are none: all of this must
    // be the same in small pages.
    let enabled = std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
    assert_eq!(enabled.is_err(), on_xen(), "{enabled:?}");
    // There, a kernel may be one that has never heard of them.
    let wish = |map: &Map, length| {
        if !on_xen() {
            map.advise(0, length, libc::MADV_HUGEPAGE);
        }
    };
    let map = Map::private(8 * LARGE);
    wish(&map, 8 * LARGE);
    let words = 8 * LARGE / PAGE;
    (0..words).for_each(|i| map.set(i * PAGE, i as u64));
    // A hole and a read-only page split them.
    map.advise(3 * LARGE + PAGE, PAGE, libc::MADV_DONTNEED);
    map.protect(4 * LARGE, PAGE, libc::PROT_READ);
    let child = spawn(|| {
        (0..words)
            .filter(|i| *i != 4 * LARGE / PAGE)
            .for_each(|i| map.set(i * PAGE, 0));
        0
    });
    assert_eq!(wait(child), 0);
    let hole = 3 * LARGE / PAGE + 1;
    (0..words).for_each(|i| assert_eq!(map.get(i * PAGE), if i == hole { 0 } else { i as u64 }));

    // Whole ones that go, few enough to be flushed one by one.
    let map = Map::private(4 * LARGE);
    wish(&map, 4 * LARGE);
    let start = map.start() as usize;
    let first = (start.next_multiple_of(LARGE) - start) / PAGE;
    let whole = first..first + 3 * LARGE / PAGE;
    whole.clone().for_each(|i| map.set(i * PAGE, 1));
    let large = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let large = large.lines().find(|line| line.starts_with("AnonHugePages"));
    assert!(
        large.is_some_and(|line| line.ends_with(" 0 kB") == on_xen()),
        "{large:?}"
    );
    map.advise(first * PAGE, 3 * LARGE, libc::MADV_DONTNEED);
    // Who comes next gets what was freed last.
    let other = Map::private(4 * LARGE);
    wish(&other, 4 * LARGE);
    (0..4 * LARGE / PAGE).for_each(|i| other.set(i * PAGE, 2));
    whole.for_each(|i| assert_eq!(map.get(i * PAGE), 0, "page {i}, which is no more"));
}

/// Functions written into memory, changed, and called again.
fn generated_code() {
    let map = Map::private(PAGE);
    for value in 0..2000u32 {
        map.protect(0, PAGE, RW);
        // mov $value, %eax; ret
        let mut code = [0xb8, 0, 0, 0, 0, 0xc3];
        code[1..5].copy_from_slice(&value.to_le_bytes());
        // SAFETY: inside the page; then it is a function of this type.
        let result = unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), map.start(), code.len());
            map.protect(0, PAGE, libc::PROT_READ | libc::PROT_EXEC);
            std::mem::transmute::<*mut u8, extern "C" fn() -> u32>(map.start())()
        };
        assert_eq!(result, value, "code that was changed");
    }
}

/// Random operations against a plain array that says what must be there.
fn random_walk() {
    const SIZE: usize = 256;
    let map = Map::private(SIZE * PAGE);
    let mut model = [0u64; SIZE];
    let mut random = Random(42);
    for step in 1..6000u64 {
        let i = random.below(SIZE);
        match random.below(40) {
            0 => {
                map.advise(i * PAGE, PAGE, libc::MADV_DONTNEED);
                model[i] = 0;
            }
            1 => {
                map.protect(i * PAGE, PAGE, libc::PROT_READ);
                assert_eq!(map.get(i * PAGE), model[i]);
                map.protect(i * PAGE, PAGE, RW);
            }
            2 if step % 8 == 0 => {
                let status = in_child(|| {
                    let seen = (0..SIZE).all(|i| map.get(i * PAGE) == model[i]);
                    (0..SIZE).for_each(|i| map.set(i * PAGE, 1));
                    i32::from(!seen)
                });
                assert_eq!(status, 0, "a child's view in step {step}");
            }
            3..20 => {
                map.set(i * PAGE, step);
                model[i] = step;
            }
            _ => assert_eq!(map.get(i * PAGE), model[i], "page {i} in step {step}"),
        }
    }
}
