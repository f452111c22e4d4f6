// SPDX-License-Identifier: GPL-2.0

//! For tests: do the modules of a crate know only what is below them?
//!
//! ```no_run
//! assert_eq!(layers::problems("src/lib.rs"), [""; 0]);
//! ```
//!
//! The order is written once, in the crate's root file: the first ```` ```text ```` block of its `//!` comment is the
//! map. Each of its lines begins with modules, separated by commas; what follows behind two spaces is for the
//! reader. A module belongs to the line that names it or the nearest module around it.
//!
//! ```text
//! //!   cli, web        what the user sees
//! //!   store           what is kept
//! //!   store::index    part of it, which knows nothing of the rest
//! ```
//!
//! A problem is a module which names one of a line above its own, one that is on no line, and a circle: of modules on
//! one line, or anywhere in a crate that has no map. Naming is a path that begins with `crate`, `self`, `super` or a
//! child module, in a `use` or elsewhere, but for tests, comments and text. The root file is above all lines; what it
//! has that is no module (another crate under a name of its own, what a macro makes) may have a place on a line too.
//! This sees paths, not methods: where a type is known, whatever its `impl` blocks do comes along.

mod map;
mod source;

use map::Map;
use source::{Module, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The modules that each module names; the root is the empty name.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The errors of the crate whose root file is `root`, a line for each; none if all is well.
///
/// # Panics
///
/// If a file cannot be read, or if it is not Rust as far as this looks at it.
pub fn problems(root: impl AsRef<Path>) -> Vec<String> {
    let root = root.as_ref();
    let text = std::fs::read_to_string(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let map = Map::of(&text);
    let tree = Tree::read(root, map.as_ref().map(Map::names).unwrap_or_default());
    let mut graph = graph(&tree);
    let mut problems = Vec::new();
    // The root file knows all others.
    graph.remove("");
    for (from, targets) in &mut graph {
        if targets.remove("") {
            problems.push(format!("{from} names something of the root file"));
        }
    }
    if let Some(map) = map {
        problems.extend(out_of_order(&map, &graph));
    }
    problems.extend(circles(&graph));
    problems
}

fn graph(tree: &Tree) -> Graph {
    let edges = |module: &Module| {
        module
            .paths
            .iter()
            .map(|path| tree.resolve(path))
            .filter(|target| *target != module.name)
            .collect()
    };
    tree.modules
        .values()
        .map(|module| (module.name.clone(), edges(module)))
        .collect()
}

fn out_of_order(map: &Map, graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for name in graph.keys() {
        // A module that only declares others names nothing and is named by nobody.
        let idle = graph[name].is_empty() && !graph.values().any(|to| to.contains(name));
        if map.line(name).is_none() && !idle {
            problems.push(format!("{name} is on no line of the map"));
        }
    }
    for (from, targets) in graph {
        for to in targets {
            match (map.line(from), map.line(to)) {
                (Some(above), Some(below)) if above > below => {
                    problems.push(format!("{from} names {to}, which is above it"));
                }
                _ => {}
            }
        }
    }
    problems
}

/// One line for each group of modules that can reach one another.
fn circles(graph: &Graph) -> Vec<String> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = graph
        .keys()
        .map(|from| (from, reachable(graph, from)))
        .collect();
    let circles: BTreeSet<Vec<&String>> = reach
        .iter()
        .filter(|(from, to)| to.contains(*from))
        .map(|(from, to)| {
            let back = |other: &&&String| reach.get(*other).is_some_and(|to| to.contains(from));
            to.iter().filter(back).copied().collect()
        })
        .collect();
    circles
        .iter()
        .map(|circle| {
            let names: Vec<&str> = circle.iter().map(|name| name.as_str()).collect();
            format!("a circle: {}", names.join(", "))
        })
        .collect()
}

/// Every module that `from` names, directly or by way of others.
fn reachable<'a>(graph: &'a Graph, from: &str) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(next) = left.pop() {
        if seen.insert(next) {
            left.extend(graph.get(next).into_iter().flatten());
        }
    }
    seen
}
