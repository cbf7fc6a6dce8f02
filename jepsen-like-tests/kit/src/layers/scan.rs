//! Finds the paths in Rust sources, token by token, and the modules that they name.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{Import, Imports};

/// The maximal number of re-exports through which a name is followed.
const PASSED_ON_MAX: usize = 8;

/// A path as it is written in the source, not resolved yet.
#[derive(Debug)]
pub(super) struct Path {
    file: String,
    line: usize,
    /// The module of the file.
    from: String,
    /// The innermost module around the path: that of the file, or an inline module in it.
    scope: String,
    segments: Vec<String>,
}

#[derive(Default)]
pub(super) struct Scan {
    modules: BTreeSet<String>,
    /// Modules that exist only in tests.
    tests: BTreeSet<String>,
    paths: Vec<Path>,
    /// The names that `use` declares: (module, name) to the imported path.
    names: BTreeMap<(String, String), Vec<String>>,
}

/// The position of the scan.
#[derive(Clone)]
struct At<'a> {
    file: &'a str,
    from: &'a str,
    scope: String,
    /// Whether the position is outside of functions and other blocks.
    top: bool,
}

impl Scan {
    pub(super) fn file(&mut self, path: &str, text: &str) {
        let stem = path.strip_suffix(".rs").unwrap_or(path);
        let stem = stem.strip_suffix("/mod").unwrap_or(stem);
        let module = if stem == "lib" {
            String::new()
        } else {
            stem.replace('/', "::")
        };
        self.modules.insert(module.clone());
        let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let at = At {
            file: path,
            from: &module,
            scope: module.clone(),
            top: true,
        };
        self.stream(stream, &at);
    }

    fn stream(&mut self, stream: TokenStream, at: &At<'_>) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut i = 0;
        while i < tokens.len() {
            i = self.token(&tokens, i, at);
        }
    }

    /// Processes the item or token at `i`. Returns the index after it.
    fn token(&mut self, tokens: &[TokenTree], i: usize, at: &At<'_>) -> usize {
        match &tokens[i] {
            TokenTree::Punct(punct) if punct.as_char() == '#' => self.attribute(tokens, i, at),
            TokenTree::Ident(word) if word == "use" && begins_use(tokens.get(i + 1)) => {
                let end = position(tokens, i, ';');
                self.use_tree(&tokens[i + 1..end], &[], at);
                end + 1
            }
            TokenTree::Ident(word) if word == "mod" => match tokens.get(i + 1..i + 3) {
                Some([TokenTree::Ident(name), TokenTree::Group(body)]) => {
                    let scope = join(&at.scope, &name.to_string());
                    self.modules.insert(scope.clone());
                    self.stream(body.stream(), &At { scope, ..at.clone() });
                    i + 3
                }
                _ => i + 1,
            },
            TokenTree::Ident(_) => self.path(tokens, i, at),
            TokenTree::Group(group) => {
                self.stream(
                    group.stream(),
                    &At {
                        top: false,
                        ..at.clone()
                    },
                );
                i + 1
            }
            _ => i + 1,
        }
    }

    /// Skips an attribute, and after `#[cfg(test)]` also the item that it applies to. Returns the index after it.
    fn attribute(&mut self, tokens: &[TokenTree], i: usize, at: &At<'_>) -> usize {
        let inner = matches!(tokens.get(i + 1), Some(TokenTree::Punct(punct)) if punct.as_char() == '!');
        let i = i + 1 + usize::from(inner);
        let Some(TokenTree::Group(attribute)) = tokens.get(i) else {
            return i;
        };
        if !is_test(attribute.stream()) {
            return i + 1;
        }
        if inner {
            return tokens.len();
        }
        let rest = &tokens[i + 1..];
        let word = |n: usize| match rest.get(n) {
            Some(TokenTree::Ident(word)) => word.to_string(),
            _ => String::new(),
        };
        let at_mod = (0..3).find(|n| word(*n) == "mod");
        if let Some(n) = at_mod {
            self.tests.insert(join(&at.scope, &word(n + 1)));
        }
        let to_semicolon = (0..3).any(|n| ["use", "const", "static", "type", "let"].contains(&word(n).as_str()));
        let ends = |token: &TokenTree| match token {
            TokenTree::Punct(punct) => punct.as_char() == ';' || (punct.as_char() == ',' && at_mod.is_none()),
            TokenTree::Group(group) => !to_semicolon && group.delimiter() == Delimiter::Brace,
            _ => false,
        };
        i + 1 + rest.iter().position(ends).map_or(rest.len(), |end| end + 1)
    }

    /// Records the path that begins with the word at `i`, if there is one. Returns the index after it.
    fn path(&mut self, tokens: &[TokenTree], i: usize, at: &At<'_>) -> usize {
        let line = tokens[i].span().start().line;
        let mut segments = vec![tokens[i].to_string()];
        let mut next = i + 1;
        while is_colons(tokens, next)
            && let Some(TokenTree::Ident(segment)) = tokens.get(next + 2)
        {
            segments.push(segment.to_string());
            next += 3;
        }
        if segments.len() > 1 {
            self.found(segments, line, at);
        }
        next
    }

    fn found(&mut self, segments: Vec<String>, line: usize, at: &At<'_>) {
        self.paths.push(Path {
            file: at.file.to_owned(),
            line,
            from: at.from.to_owned(),
            scope: at.scope.clone(),
            segments,
        });
    }

    /// Records the paths of a `use`: its tokens up to the `;`, or one branch of its braces.
    fn use_tree(&mut self, tokens: &[TokenTree], prefix: &[String], at: &At<'_>) {
        let mut segments = prefix.to_vec();
        let mut name = None;
        let mut line = 0;
        for (i, token) in tokens.iter().enumerate() {
            line = token.span().start().line;
            match token {
                TokenTree::Group(group) => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    for branch in inside.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
                        if !branch.is_empty() {
                            self.use_tree(branch, &segments, at);
                        }
                    }
                    return;
                }
                TokenTree::Ident(word) if word == "as" => {
                    name = tokens.get(i + 1).map(ToString::to_string);
                    break;
                }
                TokenTree::Ident(word) if word == "self" && !segments.is_empty() => {}
                TokenTree::Ident(word) => segments.push(word.to_string()),
                _ => {}
            }
        }
        if segments.is_empty() {
            return;
        }
        if let (true, Some(name)) = (at.top, name.or_else(|| segments.last().cloned())) {
            self.names.insert((at.scope.clone(), name), segments.clone());
        }
        self.found(segments, line, at);
    }

    pub(super) fn finish(self) -> Imports {
        let is_test = |module: &str| self.tests.iter().any(|test| super::contains(test, module));
        let modules: BTreeSet<String> = self.modules.iter().filter(|module| !is_test(module)).cloned().collect();
        let mut imports = Imports {
            modules,
            ..Imports::default()
        };
        for path in &self.paths {
            if is_test(&path.from) {
                continue;
            }
            match self.resolve(&imports.modules, &path.scope, &path.segments, 0) {
                Ok(to) => {
                    imports.imports.insert(Import {
                        file: path.file.clone(),
                        line: path.line,
                        from: path.from.clone(),
                        to,
                    });
                }
                Err(foreign) => {
                    imports.foreign.entry(path.from.clone()).or_default().insert(foreign);
                }
            }
        }
        imports
    }

    /// Resolves a path to the module of this crate that contains its item, or to the name of a foreign crate.
    fn resolve(
        &self,
        modules: &BTreeSet<String>,
        scope: &str,
        segments: &[String],
        depth: usize,
    ) -> Result<String, String> {
        let mut rest = segments;
        let mut module = match rest.first().map(String::as_str) {
            Some("crate") => {
                rest = &rest[1..];
                String::new()
            }
            Some("self" | "super") => {
                let mut module = scope;
                while let Some((first, tail)) = rest.split_first()
                    && (first == "self" || first == "super")
                {
                    if first == "super" {
                        module = module.rsplit_once("::").map_or("", |(parent, _)| parent);
                    }
                    rest = tail;
                }
                module.to_owned()
            }
            Some(first) if modules.contains(&join(scope, first)) => scope.to_owned(),
            Some(first) => {
                let name = (scope.to_owned(), first.to_owned());
                return match self.names.get(&name) {
                    Some(path) if depth < PASSED_ON_MAX && path.first() != rest.first() => {
                        let path = [path, &rest[1..]].concat();
                        self.resolve(modules, scope, &path, depth + 1)
                    }
                    _ => Err(foreign(rest)),
                };
            }
            None => return Ok(scope.to_owned()),
        };
        while let Some((first, tail)) = rest.split_first() {
            let inner = join(&module, first);
            if modules.contains(&inner) {
                module = inner;
                rest = tail;
                continue;
            }
            if let Some(path) = self.names.get(&(module.clone(), first.clone()))
                && depth < PASSED_ON_MAX
            {
                let path = [path, tail].concat();
                return self.resolve(modules, &module, &path, depth + 1);
            }
            break;
        }
        Ok(module)
    }
}

/// The foreign name that a path begins with: `rocksdb`, or `std::fs`.
fn foreign(segments: &[String]) -> String {
    match segments {
        [first, second, ..] if first == "std" => format!("{first}::{second}"),
        [first, ..] => first.clone(),
        [] => String::new(),
    }
}

/// Whether the token after `use` begins an import. `use<…>` in a type does not.
fn begins_use(token: Option<&TokenTree>) -> bool {
    match token {
        Some(TokenTree::Punct(punct)) => punct.as_char() == ':',
        Some(_) => true,
        None => false,
    }
}

fn is_colons(tokens: &[TokenTree], i: usize) -> bool {
    let colon = |i: usize| matches!(tokens.get(i), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(i) && colon(i + 1)
}

/// Whether an attribute is `cfg(test)`, possibly combined with other conditions by `all`.
fn is_test(attribute: TokenStream) -> bool {
    let text = attribute.to_string();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    words.first() == Some(&"cfg") && words.contains(&"test") && !words.contains(&"not") && !words.contains(&"any")
}

fn position(tokens: &[TokenTree], from: usize, wanted: char) -> usize {
    let found = tokens[from..]
        .iter()
        .position(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted));
    found.map_or(tokens.len() - 1, |at| from + at)
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}::{name}")
    }
}
