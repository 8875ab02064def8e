//! The two text formats of metrics.
//!
//! OpenMetrics is what the encoder writes and Prometheus asks for. Tools that ask for nothing in particular, as
//! `promtool check metrics` behind `curl`, read the older one: there a counter's whole name is told with its type, nothing
//! is an info, and nothing ends it.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub(super) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether whoever asks reads OpenMetrics.
pub(super) fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|accepted| accepted.contains("application/openmetrics-text"))
}

/// OpenMetrics in the older format.
pub(super) fn plain(open: &str) -> String {
    let (mut text, mut about) = (String::with_capacity(open.len()), "");
    for line in open.lines().filter(|line| *line != "# EOF") {
        if let Some(help) = line.strip_prefix("# HELP ") {
            // Its name depends on the type, which comes next.
            about = help.split_once(' ').map_or("", |(_, about)| about);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|kind| kind.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            text += &format!("# HELP {name}{suffix} {about}\n# TYPE {name}{suffix} {kind}\n");
        } else {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_whole_names_and_no_end() {
        let open = "# HELP a_b Changes.\n# TYPE a_b counter\na_b_total 1\n# HELP a_v Its version.\n# TYPE a_v info\n\
                    a_v_info{version=\"1\"} 1\n# HELP a_q Now.\n# TYPE a_q gauge\na_q 2\n# EOF\n";
        let expected = "# HELP a_b_total Changes.\n# TYPE a_b_total counter\na_b_total 1\n\
                        # HELP a_v_info Its version.\n# TYPE a_v_info gauge\na_v_info{version=\"1\"} 1\n\
                        # HELP a_q Now.\n# TYPE a_q gauge\na_q 2\n";
        assert_eq!(plain(open), expected);
    }
}
