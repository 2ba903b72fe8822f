//! The comma-separated files.

use std::collections::BTreeMap;

use super::MODELS;
use crate::demand::{Demand, RATE_MAX, SLO_MAX_MS};
use crate::input::{InputError, records};
use crate::interference::{LinearConstants, UtilisationCurve, Utilisations};
use crate::table::{LatencyTable, TABLE_BATCH_MAX, TABLE_LATENCY_MAX_MS};

/// Most lines of a file that any reader takes.
const LINES_MAX: usize = 1 << 20;

/// `model,share_pct,batch,latency_ms` a line, no header; further columns do not count.
///
/// # Errors
/// File, line, field and rule.
pub fn latencies(file: &str, text: &str) -> Result<LatencyTable, InputError> {
    let mut table = LatencyTable::new();
    for record in records(file, text) {
        if record.len() < 4 {
            let rule = format!(
                "must have 4 columns: model, share in percent, batch, latency in ms; has {}",
                record.len()
            );
            return Err(record.error("line", rule));
        }
        let model = record.text(0, "model")?;
        let share_pct = record.whole(1, "share", (1, 100))?;
        let batch = record.whole(2, "batch", (1, TABLE_BATCH_MAX))?;
        let latency_ms = record.number(3, "latency", (1e-6, TABLE_LATENCY_MAX_MS))?;
        if !table.insert(model, share_pct, batch, latency_ms) {
            let rule = format!("{model} at {share_pct} %, batch {batch}, must be given once");
            return Err(record.error("line", rule));
        }
    }
    if table.models().next().is_none() {
        return Err(InputError::whole(file, "lines", "must have at least one, has none"));
    }
    Ok(table)
}

/// A count N, then N lines `model,rate,slo_ms,`; the model by its published number or its name.
///
/// # Errors
/// File, line, field and rule.
pub fn rates(file: &str, text: &str) -> Result<Vec<Demand>, InputError> {
    let mut records = records(file, text);
    let first = records.next().ok_or_else(|| {
        InputError::whole(file, "count", "must be on the first line, file is empty")
    })?;
    let count: usize = first.whole(0, "count", (0, LINES_MAX))?;
    if first.len() > 1 {
        let rule = format!("must stand alone on its line, with {} columns more", first.len() - 1);
        return Err(first.error("count", rule));
    }
    let mut demands = Vec::new();
    for record in records {
        if demands.len() == count {
            return Err(record.error("line", format!("must be one of {count}, as line 1 says")));
        }
        if record.len() != 3 {
            let rule = format!("must have 3 columns: model, rate, SLO; has {}", record.len());
            return Err(record.error("line", rule));
        }
        let text = record.text(0, "model")?;
        // A number is a published id; anything else the name of a model.
        let model = if text.parse::<f64>().is_ok() {
            MODELS[record.whole(0, "model", (0, MODELS.len() - 1))?].name
        } else {
            text
        };
        let rate = record.number(1, "rate", (0.0, RATE_MAX))?;
        let slo_ms = record.number(2, "SLO", (0.001, SLO_MAX_MS))?;
        demands.push(Demand { model: model.to_owned(), rate, slo_ms });
    }
    match demands.len() {
        found if found < count => {
            let rule = format!("says {count}, but {found} lines follow");
            Err(InputError { file: file.into(), line: 1, field: "count".into(), rule })
        }
        _ => Ok(demands),
    }
}

/// A rate trace: requests per second, one number a line, a second each.
///
/// # Errors
/// File, line, field and rule.
pub fn trace(file: &str, text: &str) -> Result<Vec<f64>, InputError> {
    let rates: Vec<f64> = records(file, text)
        .map(|record| record.number(0, "rate", (0.0, RATE_MAX)))
        .collect::<Result<_, _>>()?;
    if rates.is_empty() || rates.len() > LINES_MAX {
        let rule = format!("must be 1 to {LINES_MAX}, are {}", rates.len());
        return Err(InputError::whole(file, "lines", rule));
    }
    Ok(rates)
}

/// Gathering times: `batch,ms,` a line, from batch 1 without gaps.
///
/// # Errors
/// File, line, field and rule.
pub fn batching_costs(file: &str, text: &str) -> Result<Vec<f64>, InputError> {
    let mut costs = Vec::new();
    for record in records(file, text) {
        let next = costs.len() as u32 + 1;
        record.whole(0, "batch", (next, next))?;
        costs.push(record.number(1, "time", (0.0, TABLE_LATENCY_MAX_MS))?);
    }
    if costs.is_empty() {
        return Err(InputError::whole(file, "lines", "must have at least one, has none"));
    }
    Ok(costs)
}

/// A header, then `model,batch,duration,SM%,L2%,DRAM%,...`: only L2 and DRAM are used.
///
/// # Errors
/// File, line, field and rule.
pub fn utilisations(file: &str, text: &str) -> Result<Utilisations, InputError> {
    let mut points: BTreeMap<String, Vec<(u32, f64, f64)>> = BTreeMap::new();
    for record in records(file, text).skip(1) {
        let model = record.text(0, "model")?;
        let batch = record.whole(1, "batch", (1, TABLE_BATCH_MAX))?;
        let l2 = record.number(4, "L2", (0.0, 100.0))? / 100.0;
        let dram = record.number(5, "DRAM", (0.0, 100.0))? / 100.0;
        let of_model = points.entry(model.to_owned()).or_default();
        if of_model.iter().any(|point| point.0 == batch) {
            return Err(record.error("batch", format!("{batch} of {model} must be given once")));
        }
        of_model.push((batch, l2, dram));
    }
    let mut curves = BTreeMap::new();
    for (model, points) in points {
        let curve =
            UtilisationCurve::new(points).map_err(|rule| InputError::whole(file, &model, rule))?;
        curves.insert(model, curve);
    }
    Ok(Utilisations { file: file.to_owned(), curves })
}

/// A header, then five numbers: own L2, other's L2, own DRAM, other's DRAM, constant.
///
/// # Errors
/// File, line, field and rule.
pub fn constants(file: &str, text: &str) -> Result<LinearConstants, InputError> {
    let mut records = records(file, text).skip(1);
    let record = records.next().ok_or_else(|| {
        InputError::whole(file, "constants", "must be on the line after the header")
    })?;
    let weight = |index: usize, field: &str| record.number(index, field, (-100.0, 100.0));
    let constants = LinearConstants {
        own_l2: weight(0, "own L2")?,
        other_l2: weight(1, "other's L2")?,
        own_dram: weight(2, "own DRAM")?,
        other_dram: weight(3, "other's DRAM")?,
        constant: weight(4, "constant")?,
    };
    if let Some(record) = records.next() {
        return Err(record.error("line", "must be the only one after the header, is another"));
    }
    Ok(constants)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<T: std::fmt::Debug>(result: Result<T, InputError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn rates_with_and_without_trailing_commas() {
        let demands = rates("r", "2\n7,100,108,\nmine,2.5,30\n").unwrap();
        assert_eq!(demands[0].model, "resnet50");
        assert_eq!((demands[1].model.as_str(), demands[1].rate), ("mine", 2.5));
        assert_eq!(rates("r", "0\n").unwrap(), []);
    }

    #[test]
    fn bad_rates() {
        let cases = [
            ("", "r: count: must be on the first line, file is empty"),
            ("x\n", "r:1: count: must be a whole number 0 to 1048576, is \"x\""),
            ("2\n7,1,1,\n", "r:1: count: says 2, but 1 lines follow"),
            ("1\n7,1,1,\n8,1,1,\n", "r:3: line: must be one of 1, as line 1 says"),
            ("1\n14,1,1,\n", "r:2: model: must be a whole number 0 to 13, is \"14\""),
            ("1\n-1,1,1,\n", "r:2: model: must be a whole number 0 to 13, is \"-1\""),
            ("1\n7,-5,1,\n", "r:2: rate: must be a number 0 to 10000000, is \"-5\""),
            ("1\n7,1e8,1,\n", "r:2: rate: must be a number 0 to 10000000, is \"1e8\""),
            ("1\n7,NaN,1,\n", "r:2: rate: must be a number 0 to 10000000, is \"NaN\""),
            ("1\n7,5,0,\n", "r:2: SLO: must be a number 0.001 to 3600000, is \"0\""),
            ("1\n7,5\n", "r:2: line: must have 3 columns: model, rate, SLO; has 2"),
        ];
        for (text, message) in cases {
            assert_eq!(told(rates("r", text)), message, "of {text:?}");
        }
    }

    #[test]
    fn latency_lines() {
        let table = latencies("l", "m,20,1,3.5,more\n\nm,20,2,4\n").unwrap();
        assert_eq!(table.latency_ms("m", 20, 2), Some(4.0));
        let cases = [
            ("", "l: lines: must have at least one, has none"),
            ("model,share,batch,ms\n", "l:1: share: must be a whole number 1 to 100, is \"share\""),
            ("m,20,1,1\nm,20,1,2\n", "l:2: line: m at 20 %, batch 1, must be given once"),
            ("m,20,1,0\n", "l:1: latency: must be a number 0.000001 to 3600000, is \"0\""),
            ("m,20,1,inf\n", "l:1: latency: must be a number 0.000001 to 3600000, is \"inf\""),
        ];
        for (text, message) in cases {
            assert_eq!(told(latencies("l", text)), message, "of {text:?}");
        }
        assert!(told(latencies("l", "m,20,1\n")).starts_with("l:1: line: must have 4 columns"));
    }

    #[test]
    fn the_other_files() {
        assert_eq!(batching_costs("b", "1,0.5,\n2,0.75,\n").unwrap(), [0.5, 0.75]);
        assert!(told(batching_costs("b", "1,0.5\n3,1\n")).starts_with("b:2: batch: "));
        let read = constants("c", "a,b,c,d,e\n1,2,3,4,-0.5\n").unwrap();
        assert_eq!((read.other_l2, read.constant), (2.0, -0.5));
        assert!(told(constants("c", "a,b\n")).contains("after the header"));
        assert!(told(constants("c", "h\n1,2,3,4\n")).contains("c:2: constant: must be given"));
        let read = utilisations("u", "h\nlenet,1,0,0,50,25,9,9,\n").unwrap();
        assert_eq!(read.curves["lenet"].at(1), (0.5, 0.25));
        assert!(told(utilisations("u", "h\nm,1,0,0,x,25\n")).starts_with("u:2: L2: "));
    }
}
