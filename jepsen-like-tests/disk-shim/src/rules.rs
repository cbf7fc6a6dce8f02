//! The rules: lines `<operation> <part of a path> <action>`. Nothing here allocates, because it runs inside libc
//! calls, including those of an allocator.

/// The groups of file operations. A rule names a group; all calls of a group fail alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Opening for writing, creating directories and links.
    Open,
    /// All kinds of writes.
    Write,
    /// All kinds of flushes.
    Fsync,
    Rename,
    Unlink,
    /// Reserving space and truncating.
    Allocate,
}

/// The effect of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The call fails with this error number.
    Fail(i32),
    /// The call waits this many milliseconds first, or until the rule is removed.
    Delay(u64),
}

/// The maximum length of the text of all rules.
const TEXT_BYTES_MAX: usize = 4096;

/// The current rules.
pub(crate) struct Rules {
    text: [u8; TEXT_BYTES_MAX],
    length: usize,
    /// One bit for each of the first 64 lines, set if the line applies once and has been applied.
    fired: u64,
}

impl Rules {
    pub const fn new() -> Self {
        Rules {
            text: [0; TEXT_BYTES_MAX],
            length: 0,
            fired: 0,
        }
    }

    /// Replaces all rules; a text that is too long is truncated. Rules that apply once may apply again.
    pub fn replace(&mut self, text: &[u8]) {
        self.length = text.len().min(TEXT_BYTES_MAX);
        self.text[..self.length].copy_from_slice(&text[..self.length]);
        self.fired = 0;
    }

    /// Whether any rule concerns this operation; otherwise the path need not be determined.
    pub fn concern(&self, operation: Operation) -> bool {
        self.text[..self.length]
            .split(|byte| *byte == b'\n')
            .any(|line| words(line).is_some_and(|[name, ..]| covers(name, operation)))
    }

    /// The action of the first rule that matches. A rule that applies once is used up by this call.
    pub fn judge(&mut self, operation: Operation, path: &[u8]) -> Option<Action> {
        let lines = self.text[..self.length].split(|byte| *byte == b'\n');
        for (bit, line) in (0..u64::BITS).zip(lines) {
            let Some([name, part, action, rest]) = words(line) else {
                continue;
            };
            if !covers(name, operation) || !(part == b"*" || contains(path, part)) {
                continue;
            }
            let action = match action {
                b"eio" => Action::Fail(libc::EIO),
                b"eio-once" if self.fired & (1 << bit) == 0 => {
                    self.fired |= 1 << bit;
                    Action::Fail(libc::EIO)
                }
                b"enospc" => Action::Fail(libc::ENOSPC),
                b"erofs" => Action::Fail(libc::EROFS),
                b"delay-ms" => Action::Delay(number(rest)),
                _ => continue,
            };
            return Some(action);
        }
        None
    }
}

/// The first four words of a line that has at least three; the fourth may be empty.
fn words(line: &[u8]) -> Option<[&[u8]; 4]> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Some([
        words.next()?,
        words.next()?,
        words.next()?,
        words.next().unwrap_or_default(),
    ])
}

fn covers(name: &[u8], operation: Operation) -> bool {
    match name {
        b"*" => true,
        b"open" => operation == Operation::Open,
        b"write" | b"pwrite" => operation == Operation::Write,
        b"fsync" | b"fdatasync" => operation == Operation::Fsync,
        b"rename" => operation == Operation::Rename,
        b"unlink" => operation == Operation::Unlink,
        b"allocate" => operation == Operation::Allocate,
        _ => false,
    }
}

fn contains(path: &[u8], part: &[u8]) -> bool {
    path.windows(part.len()).any(|window| window == part)
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .filter(|digit| digit.is_ascii_digit())
        .fold(0_u64, |sum, digit| {
            sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_fits_counts_and_once_is_once() {
        let mut rules = Rules::new();
        rules.replace(b"nonsense\nfsync log/ eio-once\n  fsync  log/ delay-ms 20\nwrite * enospc\n* x/ erofs");
        let (fsync, write) = (Operation::Fsync, Operation::Write);
        assert_eq!(rules.judge(fsync, b"/d/log/1"), Some(Action::Fail(libc::EIO)));
        assert_eq!(rules.judge(fsync, b"/d/log/1"), Some(Action::Delay(20)));
        assert_eq!(rules.judge(fsync, b"/d/state/1"), None);
        assert_eq!(rules.judge(write, b"/d/state/1"), Some(Action::Fail(libc::ENOSPC)));
        assert_eq!(rules.judge(Operation::Rename, b"x/"), Some(Action::Fail(libc::EROFS)));
        assert!(rules.concern(Operation::Unlink));
        rules.replace(b"fsync log/ eio-once");
        assert!(!rules.concern(Operation::Unlink) && rules.concern(fsync));
        assert_eq!(rules.judge(fsync, b"log/"), Some(Action::Fail(libc::EIO)));
    }
}
