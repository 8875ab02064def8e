//! The report: what was measured, what it should be, and whether it is.

use std::fmt::Write as _;

use anyhow::Result;

/// One line of the report.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) what: String,
    figure: String,
    target: String,
    met: Option<bool>,
}

impl Row {
    /// A figure that nothing was promised about.
    pub(crate) fn new(what: impl Into<String>, figure: impl Into<String>) -> Row {
        Row { what: what.into(), figure: figure.into(), target: String::new(), met: None }
    }

    /// A figure with its target.
    pub(crate) fn with(self, target: impl Into<String>, met: bool) -> Row {
        Row { target: target.into(), met: Some(met), ..self }
    }

    /// The same on something that this machine does not have.
    pub(crate) fn not_measured(what: impl Into<String>, target: impl Into<String>) -> Row {
        Row { what: what.into(), figure: "not measured".to_owned(), target: target.into(), met: None }
    }

    /// The same row of a database that is not there.
    pub(crate) fn elsewhere(&self) -> Row {
        Row::not_measured(self.what.replace("SQLite", "PostgreSQL"), self.target.clone())
    }
}

/// Rows that belong together.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) rows: Vec<Row>,
}

impl Section {
    pub(crate) fn render(&self) -> Result<String> {
        let mut text =
            format!("## {}\n\n| what | measured | target | met |\n|---|---|---|---|\n", self.title);
        for Row { what, figure, target, met } in &self.rows {
            let met = match met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(text, "| {what} | {figure} | {target} | {met} |")?;
        }
        Ok(text)
    }

    /// How many targets are missed.
    pub(crate) fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.met == Some(false)).count()
    }
}
