//! Tables for the terminal. Cells may hold text of strangers, so control characters are escaped.

use std::io::IsTerminal;

use crate::terminal::escaped;

/// The alignment of the cells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// The colour of a row on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// No colour.
    Plain,
    /// Green.
    Good,
    /// Red.
    Bad,
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Rows have the colour of their tone.
    Colours,
    /// Output is plain text.
    Never,
}

impl Paint {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub fn for_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && std::io::stdout().is_terminal() {
            Paint::Colours
        } else {
            Paint::Never
        }
    }
}

/// A header and rows.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<(Tone, Vec<String>)>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, tone: Tone, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows
            .push((tone, cells.iter().map(|cell| escaped(cell).into_owned()).collect()));
    }

    /// Renders the table as lines without trailing spaces.
    pub fn render(&self, paint: Paint) -> String {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|(_, cells)| &cells[column]);
            cells
                .chain([&head[column]])
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = self.line(&head, &widths);
        out.push('\n');
        for (tone, cells) in &self.rows {
            out.push_str(&painted(&self.line(cells, &widths), *tone, paint));
            out.push('\n');
        }
        out
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
            }
            line.push_str("  ");
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A line in the colour of its tone.
pub fn painted(line: &str, tone: Tone, paint: Paint) -> String {
    let colour = match (paint, tone) {
        (Paint::Never, _) | (_, Tone::Plain) => return line.to_owned(),
        (Paint::Colours, Tone::Good) => 32,
        (Paint::Colours, Tone::Bad) => 31,
    };
    format!("\u{1b}[{colour}m{line}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("NAME", Align::Left), ("COUNT", Align::Right), ("URL", Align::Left)]);
        table.row(
            Tone::Good,
            vec!["größe".to_owned(), "7".to_owned(), "http://a".to_owned()],
        );
        table.row(
            Tone::Bad,
            vec!["x\u{1b}[2J".to_owned(), "1234567".to_owned(), String::new()],
        );
        table
    }

    #[test]
    fn columns_line_up_and_lines_end_with_text() {
        let lines: Vec<String> = table().render(Paint::Never).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "NAME          COUNT  URL");
        assert_eq!(lines[1], "größe             7  http://a");
        assert_eq!(lines[2], "x\\u{1b}[2J  1234567");
    }

    #[test]
    fn colours_surround_whole_lines_on_terminals_only() {
        assert!(!table().render(Paint::Never).contains('\u{1b}'));
        let painted = table().render(Paint::Colours);
        assert!(painted.contains("\u{1b}[32mgröße"), "{painted:?}");
        assert!(painted.ends_with("\u{1b}[0m\n"), "{painted:?}");
    }
}
