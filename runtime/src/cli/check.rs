//! `lazaret check`

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

use super::Host;
use super::failure::Failure;
use super::format::Format;

/// Check whether this host can run microVMs, by trying
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `lazaret-vmm check` found.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    usable: bool,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    name: String,
    ok: bool,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let config = &host.config;
        let mut report = machine(&config.vmm)?;
        for (name, path) in [
            ("guest kernel", &config.kernel),
            ("initramfs", &config.initramfs),
            ("shim", &config.shim),
        ] {
            let ok = path.is_file();
            report.usable &= ok;
            report.findings.push(Finding {
                name: name.to_owned(),
                ok,
                detail: Some(path.display().to_string()),
                hint: (!ok)
                    .then(|| "install lazaret, or name the file in the configuration".into()),
            });
        }
        let mut output = io::stdout().lock();
        match self.format {
            Format::Json => writeln!(output, "{}", serde_json::to_string(&report)?)?,
            Format::Table => print(&mut output, &report)?,
        }
        Ok(ExitCode::from(u8::from(!report.usable)))
    }
}

/// Lets the VMM try the machine.
fn machine(vmm: &Path) -> Result<Report, Failure> {
    let output = Command::new(vmm).arg("check").output().map_err(|error| {
        Failure::new(format!(
            "cannot run {}: {error}; is lazaret installed?",
            vmm.display()
        ))
    })?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Failure::new(format!(
            "{} check gave no report ({error}; {}): {}",
            vmm.display(),
            output.status,
            stderr.trim()
        ))
    })
}

fn print(output: &mut impl Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        let mark = if finding.ok { "ok  " } else { "FAIL" };
        let detail = finding.detail.as_deref().unwrap_or_default();
        let separator = if detail.is_empty() { "" } else { ": " };
        writeln!(output, "{mark}  {}{separator}{detail}", finding.name)?;
        if let Some(hint) = finding.hint.as_deref().filter(|_| !finding.ok) {
            writeln!(output, "      hint: {hint}")?;
        }
    }
    let verdict = if report.usable { "can" } else { "cannot" };
    writeln!(output, "This host {verdict} run microVMs.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_for_what_failed() {
        let text = r#"{"usable":false,"findings":[
            {"name":"KVM","ok":true,"detail":"API 12","hint":"none needed"},
            {"name":"virtualisation","ok":false,"detail":"no vmx or svm","hint":"enable it"}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        let mut output = Vec::new();
        print(&mut output, &report).unwrap();
        let expected = "ok    KVM: API 12\nFAIL  virtualisation: no vmx or svm\n      hint: enable it\n\
                        This host cannot run microVMs.\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }
}
