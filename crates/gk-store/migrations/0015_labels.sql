-- Which instances have a label, `key=value`, in the order of lists: a selector that few of a large fleet pass finds them
-- without reading all.
create table instance_label (
    label text not null,
    name_key text not null,
    instance text not null,
    primary key (label, name_key, instance)
);

-- No function that finds a text in another one has the same name in every database, so labels are read letter by letter:
-- `rest` is what follows, `pair` what was read since the last comma. None of their letters is a comma, a brace or a quote.
-- (The empty text is a part of a column, because a mere '' has another order on PostgreSQL.)
insert into instance_label (label, name_key, instance)
    with recursive walk (instance, name_key, rest, pair) as (
        select id, name_key, substr(labels, 2), substr(labels, 1, 0) from instance where labels <> '{}'
        union all
        select instance, name_key, substr(rest, 2),
            case when substr(rest, 1, 1) = ',' then substr(rest, 1, 0) else pair || substr(rest, 1, 1) end
        from walk where rest <> ''
    )
    select replace(replace(pair, '":"', '='), '"', ''), name_key, instance
    from walk where substr(rest, 1, 1) in (',', '}');
