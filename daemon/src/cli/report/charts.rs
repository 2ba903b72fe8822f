//! Line charts as SVG.

use plotters::prelude::*;

use crate::cli::CtlError;

/// Name and points of a line.
pub(super) type Series = (String, Vec<(f64, f64)>);

/// Told apart without colour vision too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(64, 120, 60),
    RGBColor(153, 79, 0),
    RGBColor(93, 58, 155),
    RGBColor(80, 80, 80),
];

/// A chart of `series`; from 0 on both axes.
pub(super) fn chart(
    title: &str,
    x_title: &str,
    y_title: &str,
    series: &[Series],
) -> Result<String, CtlError> {
    let most = |of: fn(&(f64, f64)) -> f64| {
        let points = series.iter().flat_map(|it| &it.1).map(of);
        points.filter(|it| it.is_finite()).fold(1e-9, f64::max) * 1.05
    };
    let (x_most, y_most) = (most(|it| it.0), most(|it| it.1));
    let mut text = String::new();
    let drawn = draw(&mut text, (title, x_title, y_title), (x_most, y_most), series);
    drawn.map_err(|error| CtlError::Output(std::io::Error::other(error.to_string())))?;
    Ok(format!("<h2>{title}</h2>\n{text}"))
}

fn draw(
    text: &mut String,
    (title, x_title, y_title): (&str, &str, &str),
    (x_most, y_most): (f64, f64),
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, (900, 420)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..x_most, 0.0..y_most)?;
    chart
        .configure_mesh()
        .x_desc(x_title)
        .y_desc(y_title)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (at, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .position(if title.starts_with("Latency") {
            SeriesLabelPosition::LowerRight
        } else {
            SeriesLabelPosition::UpperLeft
        })
        .draw()?;
    area.present()?;
    Ok(())
}
