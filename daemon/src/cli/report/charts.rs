//! Line charts as SVG, with their keys beside them: nothing covers a line.

use std::fmt::Write;

use plotters::prelude::*;

use crate::cli::CtlError;

/// Name and points of a line.
pub(super) type Series = (String, Vec<(f64, f64)>);

/// Colours that are told apart without full colour vision, and shapes for those with none.
const STYLES: [(RGBColor, &str); 6] = [
    (RGBColor(0, 114, 178), "\u{25cf}"),
    (RGBColor(213, 94, 0), "\u{25b2}"),
    (RGBColor(0, 135, 98), "\u{25a0}"),
    (RGBColor(152, 68, 140), "\u{2716}"),
    (RGBColor(90, 90, 90), "\u{25c6}"),
    (RGBColor(134, 96, 0), "\u{25bc}"),
];

/// Shapes on one line.
const SHAPES_MAX: usize = 10;

/// What a chart shows.
pub(super) struct Titles {
    pub chart: &'static str,
    /// With their units.
    pub x: &'static str,
    pub y: &'static str,
    /// What a reader must know.
    pub note: String,
}

/// A chart of `series`; from 0 on both axes.
pub(super) fn chart(titles: &Titles, series: &[Series]) -> Result<String, CtlError> {
    let most = |of: fn(&(f64, f64)) -> f64| {
        let points = series.iter().flat_map(|it| &it.1).map(of);
        points.filter(|it| it.is_finite()).fold(1e-9, f64::max) * 1.05
    };
    let (x_most, y_most) = (most(|it| it.0), most(|it| it.1));
    let mut text = String::new();
    let drawn = draw(&mut text, titles, (x_most, y_most), series);
    drawn.map_err(|error| CtlError::Output(std::io::Error::other(error.to_string())))?;
    let mut keys = String::new();
    for ((name, _), (RGBColor(red, green, blue), shape)) in series.iter().zip(STYLES.iter().cycle())
    {
        let _ = write!(
            keys,
            "<span><b style=\"color:rgb({red},{green},{blue})\">{shape}</b> {}</span> ",
            escaped(name)
        );
    }
    let Titles { chart, note, .. } = titles;
    Ok(format!(
        "<figure><figcaption><h2>{chart}</h2><p>{note}</p><p class=key>{keys}</p></figcaption>\n\
         {text}</figure>\n"
    ))
}

fn draw(
    text: &mut String,
    titles: &Titles,
    (x_most, y_most): (f64, f64),
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, (600, 340)).into_drawing_area();
    let mut axes = ChartBuilder::on(&area)
        .margin_top(8)
        .margin_right(16)
        .x_label_area_size(48)
        // Seven digits, and what they are beside them.
        .y_label_area_size(88)
        .build_cartesian_2d(0.0..x_most, 0.0..y_most)?;
    axes.configure_mesh()
        .x_desc(titles.x)
        .y_desc(titles.y)
        .x_labels(8)
        .y_labels(7)
        .x_label_formatter(&|it| number(*it))
        .y_label_formatter(&|it| number(*it))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .bold_line_style(RGBColor(225, 225, 225))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((_, points), (at, (colour, _))) in series.iter().zip(STYLES.iter().enumerate().cycle()) {
        axes.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        // Shapes of different lines stand apart where lines run into each other.
        let step = points.len().div_ceil(SHAPES_MAX).max(1);
        let marked = points.iter().copied().skip(at * step / STYLES.len()).step_by(step);
        let filled = colour.filled();
        axes.draw_series(marked.map(|it| EmptyElement::at(it) + Polygon::new(shape(at), filled)))?;
    }
    area.present()?;
    Ok(())
}

/// Corners of a style's shape around its point, px.
fn shape(style: usize) -> Vec<(i32, i32)> {
    match style {
        0 => vec![(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        1 => vec![(0, -6), (5, 4), (-5, 4)],
        2 => vec![(-4, -4), (4, -4), (4, 4), (-4, 4)],
        3 => vec![
            (-4, -6),
            (0, -2),
            (4, -6),
            (6, -4),
            (2, 0),
            (6, 4),
            (4, 6),
            (0, 2),
            (-4, 6),
            (-6, 4),
            (-2, 0),
            (-6, -4),
        ],
        4 => vec![(0, -6), (6, 0), (0, 6), (-6, 0)],
        _ => vec![(0, 6), (5, -4), (-5, -4)],
    }
}

/// Names come from files.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// As short as it can be: no decimals where there are none.
fn number(it: f64) -> String {
    let text = format!("{it:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_markup() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
        let titles = Titles { chart: "c", x: "x", y: "y", note: String::new() };
        let drawn = chart(&titles, &[("<b>".into(), vec![(0.0, 1.0), (1.0, 2.0)])]).unwrap();
        assert!(drawn.contains("&lt;b&gt;") && drawn.matches("<svg").count() == 1, "{drawn}");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 18.0, 0.25, 1500.0, 0.1 + 0.2].map(number);
        assert_eq!(shown, ["0", "18", "0.25", "1500", "0.3"]);
    }
}
