//! `gpuletctl fit`: interference models from measured meetings of batches.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use gpulet_plan::input::InputError;
use gpulet_plan::interference::{
    Errors, LinearConstants, Meeting, Predictor, Tempers, Utilisations, held_out,
};
use gpulet_plan::measured::beside::MeasuredBeside;
use gpulet_plan::published::utilisations;

use super::published::{read, write};
use super::{CtlError, print};

/// Fit interference models to batches that were timed beside each other
///
/// How good they are is said on standard error: predictions of sets by models that were fitted
/// without them.
#[derive(Debug, Args)]
pub struct Fit {
    /// The interference.json of `profile --interference`, or a list of {"sufferer": [model,
    /// batch, share_pct], "neighbours": [...], "factor": n}
    #[arg(value_name = "MEASURED")]
    measured: PathBuf,
    /// Utilisations in the published format, for the published linear model; left out, what
    /// MEASURED says of pressure kernels, if it does
    #[arg(long, value_name = "CSV")]
    utilisations: Option<PathBuf>,
    /// Where the linear model's constants go
    #[arg(long, value_name = "CSV")]
    constants: Option<PathBuf>,
    /// Where our model goes, as JSON; left out, to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Parts that the sets are dealt into; each is predicted by what is fitted to the others
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u16).range(2..=1000))]
    folds: u16,
    /// What they are shuffled by
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What was measured.
struct Measured {
    /// What the members of each set suffered.
    sets: Vec<Vec<Meeting>>,
    utilisations: Option<Utilisations>,
    /// How far equal measurements lie apart.
    repeats: Vec<f64>,
}

impl Fit {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let mut measured = measured(&self.measured)?;
        if let Some(path) = &self.utilisations {
            let (name, text) = read(path)?;
            measured.utilisations = Some(utilisations(&name, &text)?);
        }
        let all: Vec<Meeting> = measured.sets.iter().flatten().cloned().collect();
        if let Some(path) = &self.constants {
            let used = measured.utilisations.as_ref().ok_or_else(|| {
                CtlError::Usage("--constants needs --utilisations with these meetings".into())
            })?;
            let found = LinearConstants::fit(&all, used)?;
            let LinearConstants { own_l2, other_l2, own_dram, other_dram, constant } = found;
            let header = "l2_own,l2_other,dram_own,dram_other,constant";
            let line = format!("{own_l2},{other_l2},{own_dram},{other_dram},{constant}");
            write(path, &format!("{header}\n{line}\n"))?;
        }
        let fitted = Tempers::fit(&all);
        let text = serde_json::to_string_pretty(&fitted).map_err(std::io::Error::from);
        let text = text.map_err(CtlError::Output)? + "\n";
        match &self.output {
            Some(path) => write(path, &text)?,
            None => print(&text)?,
        }
        eprint!("{}", self.judged(&measured, &fitted));
        Ok(())
    }

    /// How good the models are, for people.
    fn judged(&self, measured: &Measured, fitted: &Tempers) -> String {
        let sets = &measured.sets;
        let own =
            sets.iter().flatten().filter_map(|it| Some(fitted.predicted(it)? / it.factor - 1.0));
        let mut text = format!("{} sets, {} meetings\n", sets.len(), sets.iter().flatten().count());
        let _ = writeln!(text, "fitted to all of them:      {}", shown(Errors::of(own)));
        if sets.len() < 2 {
            return text;
        }
        let _ = writeln!(
            text,
            "held out ({} parts, seed {}): {}",
            self.folds,
            self.seed,
            self.held_out(sets, |known| {
                let fitted = Tempers::fit(known);
                Ok(Box::new(move |it: &Meeting| fitted.predicted(it)))
            })
        );
        if let Some(used) = &measured.utilisations {
            let linear = self.held_out(sets, |known| {
                let fitted = LinearConstants::fit(known, used)?;
                Ok(Box::new(move |it: &Meeting| fitted.predicted(it, used).ok()))
            });
            let _ = writeln!(text, "  the published linear one: {linear}");
        }
        if !measured.repeats.is_empty() {
            let apart = Errors::of(measured.repeats.iter().copied());
            let _ = writeln!(text, "equal members of a set:     {}", shown(apart));
        }
        text
    }

    fn held_out<'a>(
        &self,
        sets: &[Vec<Meeting>],
        fit: impl Fn(&[Meeting]) -> Result<Predictor<'a>, InputError>,
    ) -> String {
        let errors = match held_out(sets, self.folds.into(), self.seed, fit) {
            Ok(errors) => errors,
            Err(error) => return error.to_string(),
        };
        let mut text = shown(Errors::of(errors.iter().map(|it| it.1)));
        for (size, name) in [(2, "pairs"), (3, "threes"), (4, "fours")] {
            let of_size = errors.iter().filter(|it| sets[it.0].len() == size).map(|it| it.1);
            if let Some(Errors { p50, p90, .. }) = Errors::of(of_size) {
                let _ = write!(text, "; {name} {:.1}, {:.1}", 100.0 * p50, 100.0 * p90);
            }
        }
        text
    }
}

fn shown(errors: Option<Errors>) -> String {
    errors.map_or("none".into(), |Errors { count, p50, p90, most }| {
        let [p50, p90, most] = [p50, p90, most].map(|part| 100.0 * part);
        format!("error {p50:.1} % at p50, {p90:.1} % at p90, {most:.1} % at most ({count})")
    })
}

/// Reads measurements of either kind.
fn measured(path: &std::path::Path) -> Result<Measured, CtlError> {
    let (name, text) = read(path)?;
    let told = |error: serde_json::Error| {
        let (line, rule) = (error.line(), error.to_string());
        InputError { file: name.clone(), line, field: "document".into(), rule }
    };
    let wrong = |field: &str, rule: String| InputError::whole(&name, field, rule);
    if text.trim_start().starts_with('{') {
        let file: MeasuredBeside = serde_json::from_str(&text).map_err(told)?;
        file.check().map_err(|error| wrong("format", error.to_string()))?;
        let sets = file.meetings();
        let sets = sets.ok_or_else(|| wrong("stamp.sm_count", "must be given, is not".into()))?;
        let utilisations = Some(file.utilisations(&name));
        check(&name, &sets)?;
        return Ok(Measured { sets, utilisations, repeats: file.repeats() });
    }
    let meetings: Vec<Meeting> = serde_json::from_str(&text).map_err(told)?;
    let sets: Vec<Vec<Meeting>> = meetings.into_iter().map(|it| vec![it]).collect();
    check(&name, &sets)?;
    Ok(Measured { sets, utilisations: None, repeats: Vec::new() })
}

fn check(file: &str, sets: &[Vec<Meeting>]) -> Result<(), InputError> {
    let sensible = |it: &Meeting| {
        let all = it.neighbours.iter().chain([&it.sufferer]);
        it.factor > 0.0
            && it.factor <= 1000.0
            && !it.neighbours.is_empty()
            && all.into_iter().all(|it| it.1 >= 1 && (1..=100).contains(&it.2))
    };
    if let Some(at) = sets.iter().position(|set| !set.iter().all(sensible)) {
        let rule = "must have neighbours, batches from 1, shares 1 to 100, a factor above 0";
        return Err(InputError::whole(file, &format!("[{at}]"), rule));
    }
    if sets.iter().all(Vec::is_empty) {
        return Err(InputError::whole(file, "meetings", "must be at least one"));
    }
    Ok(())
}
