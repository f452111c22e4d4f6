// SPDX-License-Identifier: GPL-2.0

//! Just enough of Rust's syntax: which modules there are, and which paths a file names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One module.
pub(crate) struct Module {
    /// Its path from the root, `a::b`.
    pub(crate) name: String,
    /// The paths that it names, from the root.
    pub(crate) paths: Vec<Vec<String>>,
    /// The macros it defines.
    macros: Vec<String>,
}

/// The modules of a crate, by name. That of the root is empty.
pub(crate) struct Tree {
    pub(crate) modules: BTreeMap<String, Module>,
    /// What else the root has that counts as a module, for the map names it.
    others: Vec<String>,
}

impl Tree {
    pub(crate) fn read(root: &Path, others: Vec<String>) -> Self {
        let mut tree = Self {
            modules: BTreeMap::new(),
            others,
        };
        let folder = root.parent().unwrap_or(Path::new("")).to_path_buf();
        tree.add(String::new(), root, &folder);
        tree
    }

    /// The module that a path leads to. One that the root only passes on, and a macro, which is at the root wherever
    /// it is defined, count as where they come from.
    pub(crate) fn resolve(&self, path: &[String]) -> String {
        for end in (1..=path.len()).rev() {
            let name = path[..end].join("::");
            if self.modules.contains_key(&name) {
                return name;
            }
        }
        let Some(first) = path.first() else {
            return String::new();
        };
        if self.others.contains(first) {
            return first.clone();
        }
        if let Some(home) = self.modules.values().find(|m| m.macros.contains(first)) {
            return home.name.clone();
        }
        let root = &self.modules[""];
        let passed_on = root.paths.iter().find(|p| p.last() == Some(first));
        match passed_on {
            Some(path) if path.len() > 1 => self.resolve(path),
            _ => String::new(),
        }
    }

    /// Reads the module `name` from `file`; its children are in `folder`.
    fn add(&mut self, name: String, file: &Path, folder: &Path) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let tokens = without_tests(tokens(&text));
        let here: Vec<String> = name
            .split("::")
            .filter(|s| !s.is_empty())
            .map(String::from)
            .collect();
        let mut children = Vec::new();
        let mut i = 0;
        while let [token, child, after, ..] = &tokens[i.min(tokens.len())..] {
            i += 1;
            if token != "mod" || !is_name(child) {
                continue;
            }
            let child_name = [&here[..], &[child.clone()]].concat().join("::");
            children.push(child.clone());
            if after == ";" {
                let flat = folder.join(format!("{child}.rs"));
                let nested = folder.join(child);
                let file = if flat.exists() {
                    flat
                } else {
                    nested.join("mod.rs")
                };
                self.add(child_name, &file, &nested);
            } else {
                // It is written here, and what it names is named by this file. Its own children are not looked for.
                i += item(&tokens[i..]);
                let inside = Module {
                    name: child_name.clone(),
                    paths: Vec::new(),
                    macros: Vec::new(),
                };
                self.modules.insert(child_name, inside);
            }
        }
        let macros = tokens
            .windows(3)
            .filter(|w| w[0] == "macro_rules" && w[1] == "!")
            .map(|w| w[2].clone())
            .collect();
        let module = Module {
            name: name.clone(),
            paths: paths(&tokens, &here, &children),
            macros,
        };
        self.modules.insert(name, module);
    }
}

/// Every path in `tokens` that begins with `crate`, `self`, `super` or a child, from the root.
fn paths(tokens: &[String], here: &[String], children: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut i = 0;
    while let Some(token) = tokens.get(i) {
        i += 1;
        let begins = i == 1 || tokens[i - 2] != "::";
        if !begins || tokens.get(i).is_none_or(|next| next != "::") {
            continue;
        }
        let base = match token.as_str() {
            "crate" => Vec::new(),
            "self" => here.to_vec(),
            "super" => here[..here.len().saturating_sub(1)].to_vec(),
            child if children.iter().any(|c| c == child) => [here, &[child.to_string()]].concat(),
            _ => continue,
        };
        i += 1;
        follow(tokens, &mut i, &base, &mut found);
    }
    found
}

/// Reads what follows `base::` at `at`: names, and groups of more of the same.
fn follow(tokens: &[String], at: &mut usize, base: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = base.to_vec();
    loop {
        match tokens.get(*at).map(String::as_str) {
            Some("{") => {
                *at += 1;
                while tokens.get(*at).is_some_and(|t| t != "}") {
                    follow(tokens, at, &path, found);
                    // Behind a name: `as other`, and the comma.
                    while tokens.get(*at).is_some_and(|t| t != "}" && t != ",") {
                        *at += 1;
                    }
                    if tokens.get(*at).is_some_and(|t| t == ",") {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            Some("self") => *at += 1,
            Some("super") => {
                path.pop();
                *at += 2;
                continue;
            }
            Some(name) if is_name(name) => {
                path.push(name.to_string());
                *at += 1;
                if tokens.get(*at).map(String::as_str) == Some("::") {
                    *at += 1;
                    continue;
                }
            }
            _ => {}
        }
        found.push(path);
        return;
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Cuts out what is compiled for tests alone: the item behind each `#[cfg(test)]`.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].iter().take(TEST.len()).eq(TEST.iter()) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += item(&tokens[i..]);
    }
    kept
}

/// The number of tokens of the item that they begin with: up to its block's end, or to a semicolon.
fn item(tokens: &[String]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(token.as_str(), "}" | ";") {
            return i + 1;
        }
    }
    tokens.len()
}

/// Names, `::`, and single other characters; no comments, no text.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let rest = &chars[i..];
        match rest {
            ['/', '/', ..] => i += rest.iter().take_while(|c| **c != '\n').count(),
            ['/', '*', ..] => i += block_comment(rest),
            ['"', ..] => i += string(rest),
            ['r', '"' | '#', ..] if raw_string(rest).is_some() => {
                i += raw_string(rest).unwrap_or(1)
            }
            ['\'', '\\', ..] => i += 3 + rest[3..].iter().take_while(|c| **c != '\'').count(),
            ['\'', _, '\'', ..] => i += 3,
            [':', ':', ..] => {
                tokens.push("::".to_string());
                i += 2;
            }
            [c, ..] if c.is_alphanumeric() || *c == '_' => {
                let name: String = rest
                    .iter()
                    .take_while(|c| c.is_alphanumeric() || **c == '_')
                    .collect();
                i += name.chars().count();
                // A string may have a prefix: b"", c"".
                if !matches!(name.as_str(), "b" | "c") || chars.get(i) != Some(&'"') {
                    tokens.push(name);
                }
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                i += 1;
            }
            [] => break,
        }
    }
    tokens
}

/// The length of the comment that `text` begins with. Comments nest.
fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < text.len() {
        match &text[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] if depth == 1 => return i + 2,
            ['*', '/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    text.len()
}

/// The length of the string that `text` begins with.
fn string(text: &[char]) -> usize {
    let mut i = 1;
    while i < text.len() {
        match text[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// The same for `r"..."` and `r#"..."#`; `None` if it is none.
fn raw_string(text: &[char]) -> Option<usize> {
    let hashes = text[1..].iter().take_while(|c| **c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    let begin = 2 + hashes;
    let at = text[begin..].windows(end.len()).position(|w| w == end)?;
    Some(begin + at + end.len())
}
