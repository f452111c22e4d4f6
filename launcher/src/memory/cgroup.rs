// SPDX-License-Identifier: GPL-2.0
//! This module finds how much memory the control groups of this process leave for a Guest.
//!
//! Who needs more than a group's limit is killed, and nobody hears of lg why; a container's limit is
//! such a group's. So it is asked beforehand, in all groups from ours to the root of what is mounted.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The memory that is left in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its directory.
    pub group: PathBuf,
    /// Its limit, in bytes.
    pub limit: u64,
    /// What there is for somebody new, in bytes: what is free or can be made free, and swap.
    pub available: u64,
}

/// The files of a group, by the version of its hierarchy.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// The part of `memory.stat` that can be made free.
    reclaimable: &'static [&'static str],
    /// The most that may be swapped out, and how much that is now.
    swap: Option<(&'static str, &'static str)>,
}

const V2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    reclaimable: &["inactive_file", "active_file", "slab_reclaimable"],
    swap: Some(("memory.swap.max", "memory.swap.current")),
};
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: &["total_inactive_file", "total_active_file"],
    swap: None,
};

/// The group that leaves least. `None` where no group has a limit, or none can be seen.
///
/// `swap`: how much the Host could swap out, in bytes.
pub fn least_room(swap: u64) -> Option<Room> {
    let read = |path: &str| fs::read_to_string(path).ok();
    least_room_by(
        &read("/proc/self/cgroup")?,
        &read("/proc/self/mountinfo")?,
        swap,
    )
}

fn least_room_by(cgroup: &str, mountinfo: &str, swap: u64) -> Option<Room> {
    let groups = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (files, kind) = match controllers {
            "" => (&V2, "cgroup2"),
            _ if controllers.split(',').any(|name| name == "memory") => (&V1, "cgroup"),
            _ => return None,
        };
        let (top, group) = directory(mountinfo, kind, path)?;
        let groups = group
            .ancestors()
            .take_while(|group| group.starts_with(&top));
        groups
            .filter_map(|group| room(group, files, swap))
            .min_by_key(|room| room.available)
    });
    groups.min_by_key(|room| room.available)
}

/// The place where the hierarchy is mounted, and there the directory of the group that is called
/// `path`.
fn directory(mountinfo: &str, kind: &str, path: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, top) = (fields.next()?, Path::new(fields.next()?));
        let mut fields = file_system.split(' ');
        let is_kind = fields.next()? == kind;
        let options = fields.nth(1)?;
        let has_memory = kind == "cgroup2" || options.split(',').any(|name| name == "memory");
        if !is_kind || !has_memory {
            return None;
        }
        // A group outside of what is mounted shows no more than the top of that.
        let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let plain = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        Some((top.into(), if plain { top.join(below) } else { top.into() }))
    })
}

/// The memory that is left in this group; `None` if it has no limit.
fn room(group: &Path, files: &Files, swap: u64) -> Option<Room> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // "max" is none.
    let limit = number(files.limit)?;
    let used = number(files.used)?;
    let stat = read("memory.stat").unwrap_or_default();
    let count = |name: &str| -> u64 {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find(|(key, _)| *key == name);
        value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    let mut available = limit.saturating_sub(used);
    for name in files.reclaimable {
        available = available.saturating_add(count(name));
    }
    if let Some((most, used)) = files.swap {
        let left = number(most).map_or(swap, |most| {
            most.saturating_sub(number(used).unwrap_or(0)).min(swap)
        });
        available = available.saturating_add(left);
    }
    Some(Room {
        group: group.into(),
        limit,
        available,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A hierarchy in a directory, which has these files.
    fn hierarchy(files: &[(&str, &str)]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = top.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        top
    }

    fn mounts(root: &str, top: &Path, kind: &str, options: &str) -> String {
        let top = top.display();
        format!(
            "22 1 0:5 / /proc rw - proc proc rw\n\
             30 22 0:27 {root} {top} rw,nosuid shared:4 - {kind} {kind} {options}\n"
        )
    }

    #[test]
    fn the_least_of_all_groups_counts() {
        let limited = |limit: &'static str, used| [("memory.max", limit), ("memory.current", used)];
        let mut files = Vec::new();
        for (group, [(a, limit), (b, used)]) in [
            ("a", limited("104857600\n", "20971520\n")),
            ("a/b", limited("max\n", "20971520\n")),
            ("a/b/c", limited("209715200\n", "0\n")),
        ] {
            files.push((format!("{group}/{a}"), limit));
            files.push((format!("{group}/{b}"), used));
        }
        let stat = "file 9999999\ninactive_file 1048576\nactive_file 2097152\n\
                    slab_reclaimable 1048576\n";
        files.push(("a/memory.stat".into(), stat));
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (name.as_str(), *text))
            .collect();
        let top = hierarchy(&files);
        let mountinfo = mounts("/", top.path(), "cgroup2", "rw");
        let room = |cgroup: &str, swap| least_room_by(cgroup, &mountinfo, swap);
        let found = room("0::/a/b/c\n", 0).unwrap();
        assert_eq!(found.group, top.path().join("a"));
        assert_eq!((found.limit, found.available), (100 * MIB, 84 * MIB));
        assert_eq!(room("0::/a/b/c\n", 2 * MIB).unwrap().available, 86 * MIB);
        // More than the limit: the rest is in swap.
        assert_eq!(room("0::/a/b/c\n", 50 * MIB).unwrap().available, 134 * MIB);
        assert_eq!(room("0::/\n", 0), None);
        // Of a group that cannot be seen, nothing is known.
        assert_eq!(room("0::/../elsewhere\n", 0), None);
        assert_eq!(room("", 0), None);
        assert_eq!(least_room_by("0::/a\n", "", 0), None);
        // A container whose own group is what is mounted.
        let inside = mounts("/pods/a", &top.path().join("a"), "cgroup2", "rw");
        let found = least_room_by("0::/pods/a/b\n", &inside, 0).unwrap();
        assert_eq!(found.group, top.path().join("a"));
    }

    #[test]
    fn the_older_hierarchy_has_other_names() {
        let top = hierarchy(&[
            ("g/memory.limit_in_bytes", "67108864\n"),
            ("g/memory.usage_in_bytes", "4194304\n"),
            (
                "g/memory.stat",
                "cache 9\ntotal_inactive_file 1048576\ntotal_active_file 0\n",
            ),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "4194304\n"),
        ]);
        let cgroup = "5:cpu,cpuacct:/x\n4:memory:/g\n0::/\n";
        let mountinfo = mounts("/", top.path(), "cgroup", "rw,memory");
        let found = least_room_by(cgroup, &mountinfo, 0).unwrap();
        assert_eq!(found.group, top.path().join("g"));
        assert_eq!(found.available, 61 * MIB);
        let others = mounts("/", top.path(), "cgroup", "rw,cpu,cpuacct");
        assert_eq!(least_room_by(cgroup, &others, 0), None);
    }
}
