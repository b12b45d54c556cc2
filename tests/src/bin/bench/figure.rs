//! A figure, and how figures are shown.

use std::fmt::Write;

use anyhow::ensure;
use serde_json::{Value, json};

/// One measured value.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What was measured: `run true`.
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Whose figure it is: `lazaret`, `runc`.
    pub(crate) subject: &'static str,
    /// Whether the subject is there to compare with.
    pub(crate) peer: bool,
}

impl Figure {
    pub(crate) fn own(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            subject: "lazaret",
            peer: false,
        }
    }

    /// A figure of lazaret's or of a peer's.
    pub(crate) fn of(
        subject: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            subject,
            peer: subject != "lazaret",
            ..Self::own(name, value, unit)
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "subject": self.subject,
            "peer": self.peer,
        })
    }
}

/// The middle of some values.
pub(crate) fn median(mut values: Vec<f64>) -> anyhow::Result<f64> {
    ensure!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    Ok(if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    })
}

/// Figures in columns.
pub(crate) fn table(figures: &[Figure]) -> String {
    let width = figures
        .iter()
        .map(|figure| figure.name.len())
        .max()
        .unwrap_or(0);
    let mut table = format!(
        "{:width$}  {:8}  {:>10}  unit\n",
        "figure", "subject", "value"
    );
    for Figure {
        name,
        value,
        unit,
        subject,
        ..
    } in figures
    {
        let digits = usize::from(*unit != "exits" && *value < 10_000.0);
        writeln!(
            table,
            "{name:width$}  {subject:8}  {value:>10.digits$}  {unit}"
        )
        .expect("a string takes it");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert!((median(vec![9.0, 1.0, 2.0]).unwrap() - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 9.0]).unwrap() - 3.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_err());
    }
}
