//! `/docs`: the OpenAPI document as a page for people.
//!
//! Made here, from the document itself, with nothing from elsewhere and no script: it works offline, and under a policy
//! that lets no script run there is none to be smuggled in. Every route and every schema has an anchor, and `?q=` shows
//! those that hold all of some words.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::IntoParams;
use utoipa::openapi::OpenApi;

use crate::app::App;
use crate::extract::Query;

const STYLE: &str = include_str!("docs.css");

/// What the page may do: look like something, and ask again with other words.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; \
                      base-uri 'none'";

/// The parts of the page, made once.
#[derive(Debug)]
pub(crate) struct Docs {
    title: String,
    about: String,
    routes: Vec<Part>,
    schemas: Vec<Part>,
}

/// A route or a schema.
#[derive(Debug)]
struct Part {
    /// Its place in the page.
    anchor: String,
    /// How the table of contents calls it, as HTML.
    label: String,
    /// The heading that it stands under.
    group: String,
    html: String,
    /// What is searched, in lower case.
    text: String,
}

impl Docs {
    pub(crate) fn of(document: &OpenApi) -> Docs {
        let document = serde_json::to_value(document);
        Docs::new(&document.expect("a document made of strings and numbers is JSON"))
    }

    /// Of a document as JSON.
    fn new(document: &Value) -> Docs {
        let text = |name: &str| document["info"][name].as_str().unwrap_or_default();
        let mut routes = Vec::new();
        for (path, item) in entries(&document["paths"]) {
            for (method, operation) in entries(item) {
                routes.push(route(path, method, operation));
            }
        }
        routes.sort_by(|one, other| one.group.cmp(&other.group));
        let schemas =
            entries(&document["components"]["schemas"]).map(|(name, schema)| describe(name, schema));
        let schemas = schemas.collect();
        Docs { title: escape(text("title")), about: prose(text("description")), routes, schemas }
    }

    /// The page, with what holds all the words.
    fn page(&self, words: &str) -> String {
        let Docs { title, about, routes, schemas } = self;
        let sought: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
        let holds = |part: &&Part| sought.iter().all(|word| part.text.contains(word));
        let shown: Vec<&Part> = routes.iter().chain(schemas).filter(holds).collect();
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title} API</title>\n<style>\n{STYLE}</style>\n\
             <nav>\n<a class=\"home\" href=\"/docs\">{title} API</a>\n<form action=\"/docs\" role=\"search\">\
             <input type=\"search\" name=\"q\" value=\"{}\" placeholder=\"Search\" aria-label=\"Search\">\
             </form>\n",
            escape(words)
        );
        contents(&mut page, &shown);
        page.push_str("</nav>\n<main>\n");
        page.push_str(&match (sought.is_empty(), shown.len()) {
            (true, _) => {
                format!("<h1>{title} API</h1>\n{about}<p><a href=\"/openapi.json\">/openapi.json</a></p>\n")
            }
            (false, 0) => format!("<p>Nothing holds all of these words. {EVERYTHING}</p>\n"),
            (false, count) => format!("<p>{count} found. {EVERYTHING}</p>\n"),
        });
        shown.iter().for_each(|part| page.push_str(&part.html));
        page.push_str("</main>\n</html>\n");
        page
    }
}

const EVERYTHING: &str = "<a href=\"/docs\">Show everything</a>";

/// What to show of the document.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DocsQuery {
    /// Only routes and schemas that hold all of these words.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    q: String,
}

/// The API as a page to read and to search.
#[utoipa::path(get, path = "/docs", params(DocsQuery),
    responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn docs(
    State(app): State<App>,
    Query(DocsQuery { q }): Query<DocsQuery>,
) -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(app.published().docs.page(&q)))
}

fn contents(page: &mut String, parts: &[&Part]) {
    let mut group = "";
    for part in parts {
        if part.group != group {
            group = &part.group;
            let _ = writeln!(page, "<h2>{group}</h2>");
        }
        let _ = writeln!(page, "<a href=\"#{}\">{}</a>", part.anchor, part.label);
    }
}

fn route(path: &str, method: &str, operation: &Value) -> Part {
    let text = |name: &str| operation[name].as_str().unwrap_or_default();
    let anchor = escape(text("operationId"));
    let label = format!("<b class=\"{method}\">{}</b> {}", method.to_uppercase(), escape(path));
    let mut html =
        format!("<section id=\"{anchor}\">\n<h3>{label} <a class=\"here\" href=\"#{anchor}\">#</a></h3>\n");
    html.push_str(&prose(text("summary")));
    html.push_str(&prose(text("description")));
    let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !parameters.is_empty() {
        html.push_str("<table>\n<caption>Parameters</caption>\n");
        for parameter in parameters {
            let field = |name: &str| escape(parameter[name].as_str().unwrap_or_default());
            let needed = if parameter["required"] == true { ", required" } else { "" };
            let about = prose(parameter["description"].as_str().unwrap_or_default());
            let kind = kind(&parameter["schema"]);
            let _ = writeln!(
                html,
                "<tr><th><code>{}</code><small>{}{needed}</small></th><td>{kind}</td><td>{about}</td></tr>",
                field("name"),
                field("in")
            );
        }
        html.push_str("</table>\n");
    }
    for (media_type, content) in entries(&operation["requestBody"]["content"]) {
        let _ =
            writeln!(html, "<p>Body: {} <small>{}</small></p>", kind(&content["schema"]), escape(media_type));
    }
    html.push_str("<table>\n<caption>Answers</caption>\n");
    for (status, response) in entries(&operation["responses"]) {
        let _ = writeln!(html, "<tr><th>{status}</th><td>{}</td></tr>", answer(response));
    }
    html.push_str("</table>\n</section>\n");
    let group = escape(operation["tags"][0].as_str().unwrap_or("server"));
    Part { anchor, label, group, html, text: format!("{method} {path} {operation}").to_lowercase() }
}

fn answer(response: &Value) -> String {
    if let Some(reference) = response["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        // `TooManyRequests` as words.
        let words = name.char_indices().fold(String::new(), |mut words, (index, letter)| {
            if index > 0 && letter.is_uppercase() && !words.ends_with(char::is_uppercase) {
                words.push(' ');
            }
            words.push(letter);
            words
        });
        return format!("{}: <a href=\"#schema-Problem\">Problem</a>", escape(&words));
    }
    let about = escape(response["description"].as_str().unwrap_or_default());
    let kinds = entries(&response["content"]).map(|(media_type, content)| {
        format!(" {} <small>{}</small>", kind(&content["schema"]), escape(media_type))
    });
    kinds.fold(about, |text, kind| text + &kind)
}

fn describe(name: &str, schema: &Value) -> Part {
    let anchor = format!("schema-{}", escape(name));
    let mut html = format!(
        "<section id=\"{anchor}\">\n<h3>{} <a class=\"here\" href=\"#{anchor}\">#</a></h3>\n",
        escape(name)
    );
    html.push_str(&prose(schema["description"].as_str().unwrap_or_default()));
    fields_of(&mut html, schema);
    html.push_str("</section>\n");
    let text = format!("{name} {schema}").to_lowercase();
    Part { anchor, label: escape(name), group: "Schemas".to_owned(), html, text }
}

fn fields_of(html: &mut String, schema: &Value) {
    for part in ["allOf", "oneOf", "anyOf"] {
        for (number, choice) in schema[part].as_array().into_iter().flatten().enumerate() {
            if part != "allOf" {
                html.push_str(if number == 0 { "<p>One of:</p>\n" } else { "<p>or</p>\n" });
            }
            html.push_str(&prose(choice["description"].as_str().unwrap_or_default()));
            fields_of(html, choice);
        }
    }
    let Some(fields) = schema["properties"].as_object() else {
        if !["allOf", "oneOf", "anyOf"].iter().any(|part| schema.get(part).is_some()) {
            let _ = writeln!(html, "<p>{}</p>", kind(schema));
        }
        return;
    };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    html.push_str("<table>\n");
    for (name, field) in fields {
        let needed = if required.contains(&name.as_str()) { "<small>always</small>" } else { "" };
        let about = prose(field["description"].as_str().unwrap_or_default());
        let _ = writeln!(
            html,
            "<tr><th><code>{}</code>{needed}</th><td>{}</td><td>{about}</td></tr>",
            escape(name),
            kind(field)
        );
    }
    html.push_str("</table>\n");
}

/// A type in a few words, with links.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = escape(reference.rsplit('/').next().unwrap_or_default());
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    for (part, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(choices) = schema[part].as_array() {
            return choices.iter().map(kind).collect::<Vec<_>>().join(between);
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().map(|word| format!("<code>{}</code>", escape(&plain(word))));
        return words.collect::<Vec<_>>().join(" ");
    }
    let names = match &schema["type"] {
        Value::Array(names) => names.iter().map(plain).collect(),
        Value::Null => vec!["anything".to_owned()],
        name => vec![plain(name)],
    };
    let words =
        names.iter().map(|name| match (name.as_str(), &schema["items"], &schema["additionalProperties"]) {
            ("array", items @ Value::Object(_), _) => format!("list of {}", kind(items)),
            ("object", _, values @ Value::Object(_)) => format!("map to {}", kind(values)),
            (name, ..) => escape(name),
        });
    let bounds = ["minimum", "maximum", "default", "format", "pattern", "minLength", "maxLength"];
    let bounds =
        bounds.iter().filter_map(|name| Some(format!("{name} {}", escape(&plain(schema.get(name)?)))));
    let example =
        schema["examples"].get(0).or_else(|| schema.get("example")).filter(|value| !value.is_object());
    let bounds: Vec<String> =
        bounds.chain(example.map(|value| format!("as in {}", escape(&plain(value))))).collect();
    let small =
        if bounds.is_empty() { String::new() } else { format!("<small>{}</small>", bounds.join(", ")) };
    words.collect::<Vec<_>>().join(" or ") + &small
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// Paragraphs, with what stands between backticks as code.
fn prose(text: &str) -> String {
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
    paragraphs.fold(String::new(), |mut html, paragraph| {
        html.push_str("<p>");
        for (index, piece) in paragraph.split('`').enumerate() {
            match index % 2 {
                0 => html.push_str(&escape(piece)),
                _ => _ = write!(html, "<code>{}</code>", escape(piece)),
            }
        }
        html.push_str("</p>\n");
        html
    })
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, letter| {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_the_document_or_the_search_becomes_markup() {
        let evil = "<script>alert(1)</script>\"'";
        let schema = json!({"description": evil, "properties": {evil: {"type": evil, "enum": [evil]}, "x": {"type": evil}}});
        let operation = json!({
            "operationId": evil, "tags": [evil], "summary": evil, "description": evil,
            "parameters": [{"name": evil, "in": evil, "schema": {"pattern": evil, "examples": [evil]}, "description": evil}],
            "requestBody": {"content": {evil: {"schema": {"$ref": evil}}}},
            "responses": {"200": {"description": evil}, "400": {"$ref": evil}},
        });
        let docs = Docs::new(&json!({
            "info": {"title": evil, "description": evil},
            "paths": {evil: {"get": operation}}, "components": {"schemas": {evil: schema}},
        }));
        for page in [docs.page(""), docs.page(evil), docs.page("nowhere <i>")] {
            assert!(!page.contains("<script") && !page.contains("<i>"), "{page}");
        }
    }
}
