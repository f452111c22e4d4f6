// SPDX-License-Identifier: GPL-2.0

//! The map in a root file's comment.

/// Modules line by line, from the top.
pub(crate) struct Map(Vec<Vec<String>>);

impl Map {
    /// That of a root file, if it has one.
    pub(crate) fn of(root: &str) -> Option<Self> {
        let comment = root
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("//!"));
        let mut block = comment.skip_while(|line| line.trim() != "```text");
        block.next()?;
        let lines = block
            .take_while(|line| line.trim() != "```")
            .map(|line| {
                let line = line.trim();
                let names = line.split_once("  ").map_or(line, |(names, _)| names);
                names
                    .split(',')
                    .map(|name| name.trim().to_string())
                    .collect()
            })
            .collect();
        Some(Self(lines))
    }

    /// All modules that it names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().flatten().cloned().collect()
    }

    /// On which line a module is: that which names it, or the nearest module around it.
    pub(crate) fn line(&self, module: &str) -> Option<usize> {
        let mut name = module;
        loop {
            let found = self
                .0
                .iter()
                .position(|line| line.iter().any(|n| n == name));
            if found.is_some() {
                return found;
            }
            name = name.rsplit_once("::")?.0;
        }
    }
}
