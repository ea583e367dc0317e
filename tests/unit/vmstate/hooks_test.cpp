// SPDX-License-Identifier: Apache-2.0
//
// Hook order and what each failure does, for a device D with a struct S that has a subsection, and a subsection of
// its own. Every hook appends its name to a journal; one chosen hook fails.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;

namespace {

std::vector<std::string> journal;
std::string failing;

Result<void> note(std::string name) {
  journal.push_back(name);
  if (name == failing) return machine_error(name + " says no");
  return {};
}

template <char Who>
struct Hooks {
  template <class T>
  static Result<void> pre_save(T&) {
    return note(std::string(1, Who) + ".pre_save");
  }
  template <class T>
  static Result<void> post_save(T&) {
    return note(std::string(1, Who) + ".post_save");
  }
  template <class T>
  static Result<void> pre_load(T&) {
    return note(std::string(1, Who) + ".pre_load");
  }
  template <class T>
  static Result<void> post_load(T&, std::uint32_t version) {
    return note(std::string(1, Who) + ".post_load(" + std::to_string(version) + ")");
  }
  template <class T>
  static bool needed(const T&) {
    journal.push_back(std::string(1, Who) + ".needed");
    return true;
  }
};

template <class T, char Who>
constexpr DescriptionOf<T> hooked(DescriptionOf<T> table) {
  return table.template pre_save<&Hooks<Who>::template pre_save<T>>()
      .template post_save<&Hooks<Who>::template post_save<T>>()
      .template pre_load<&Hooks<Who>::template pre_load<T>>()
      .template post_load<&Hooks<Who>::template post_load<T>>();
}

struct S {
  std::uint8_t value = 1;
  std::uint8_t more = 2;
};
struct D {
  std::uint8_t before = 0x11;
  S s;
  std::uint8_t count = 1;
  std::array<std::uint8_t, 2> list{};
  std::uint8_t extra = 0x22;
};

constexpr Field sx_fields[] = {field<&S::more>("more")};
constexpr auto sx = hooked<S, 'x'>(describe<S>("s/x", 4).fields(sx_fields).needed_if<&Hooks<'x'>::needed<S>>());
constexpr const Description* s_parts[] = {&sx};
constexpr Field s_fields[] = {field<&S::value>("value")};
constexpr auto s_table = hooked<S, 'S'>(describe<S>("s", 7).fields(s_fields).subsections(s_parts));

constexpr Field dy_fields[] = {field<&D::extra>("extra")};
constexpr auto dy = hooked<D, 'y'>(describe<D>("d/y", 5).fields(dy_fields).needed_if<&Hooks<'y'>::needed<D>>());
constexpr const Description* d_parts[] = {&dy};
constexpr Field d_fields[] = {
    field<&D::before>("before"),
    structure<&D::s>("s", s_table),
    field<&D::count>("count"),
    counted<&D::list, &D::count>("list"),
};
constexpr auto d_table = hooked<D, 'D'>(describe<D>("d", 3).fields(d_fields).subsections(d_parts).readable_from(1));
static_assert(check(d_table) == TableFault::none);

using Names = std::vector<std::string>;

Result<Bytes> save_with(std::string fail, D object = {}) {
  journal.clear();
  failing = std::move(fail);
  ByteWriter out;
  MD_CHECK(save(d_table, object, out));
  return std::move(out).take();
}

Result<void> load_with(std::string fail, ByteView bytes, std::uint32_t version = 2) {
  journal.clear();
  failing = std::move(fail);
  D object;
  ByteReader in(bytes);
  return load(d_table, object, version, in);
}

Bytes good_bytes() { return *save_with(""); }

}  // namespace

TEST_CASE("Hooks.save_runs_them_in_order") {
  REQUIRE(save_with("").has_value());
  CHECK(journal == Names{"D.pre_save", "S.pre_save", "x.needed", "x.pre_save", "x.post_save", "S.post_save", "y.needed",
                         "y.pre_save", "y.post_save", "D.post_save"});
}

TEST_CASE("Hooks.load_runs_them_in_order_with_the_versions_of_the_wire") {
  REQUIRE(load_with("", good_bytes()).has_value());
  CHECK(journal == Names{"D.pre_load", "S.pre_load", "x.pre_load", "x.post_load(4)", "S.post_load(7)", "y.pre_load",
                         "y.post_load(5)", "D.post_load(2)"});
}

TEST_CASE("Hooks.a_failed_pre_save_skips_the_post_save_of_its_own_only") {
  const auto outer = save_with("D.pre_save");
  CHECK(journal == Names{"D.pre_save"});
  CHECK(outer.error().text() == "pre-save failed: d: D.pre_save says no");
  const auto inner = save_with("x.pre_save");
  CHECK(journal == Names{"D.pre_save", "S.pre_save", "x.needed", "x.pre_save", "S.post_save", "D.post_save"});
  CHECK(inner.error().text() ==
        "Save of field d/s failed: Save of subsection s/x failed: pre-save failed: s/x: x.pre_save says no");
}

TEST_CASE("Hooks.a_failed_post_save_is_the_result") {
  CHECK(save_with("D.post_save").error().text() == "post-save failed: d: D.post_save says no");
  const auto inner = save_with("S.post_save");
  CHECK(inner.error().text() == "Save of field d/s failed: post-save failed: s: S.post_save says no");
  CHECK(journal.back() == "D.post_save");
}

TEST_CASE("Hooks.an_earlier_error_is_kept_over_that_of_post_save") {
  D object;
  object.count = 3;
  const auto result = save_with("D.post_save", object);
  CHECK(result.error().text() == "Save of field d/list failed: count 3 is outside 0..2");
  CHECK(journal.back() == "D.post_save");
}

TEST_CASE("Hooks.a_failed_load_hook_stops_everything_behind_it") {
  const Bytes bytes = good_bytes();
  CHECK(load_with("D.pre_load", bytes).error().text() == "D.pre_load says no");
  CHECK(journal == Names{"D.pre_load"});
  CHECK(load_with("S.pre_load", bytes).error().text() == "Failed to load d:s: S.pre_load says no");
  CHECK(journal == Names{"D.pre_load", "S.pre_load"});
  CHECK(load_with("x.post_load(4)", bytes).error().text() ==
        "Failed to load d:s: Failed to load subsection s/x: x.post_load(4) says no");
  CHECK(journal.back() == "x.post_load(4)");
  CHECK(load_with("S.post_load(7)", bytes).error().text() == "Failed to load d:s: S.post_load(7) says no");
  CHECK(load_with("y.pre_load", bytes).error().text() == "Failed to load subsection d/y: y.pre_load says no");
  CHECK(journal.back() == "y.pre_load");
  CHECK(load_with("D.post_load(2)", bytes).error().text() == "D.post_load(2) says no");
}

TEST_CASE("Hooks.a_failed_field_runs_no_post_load") {
  const Bytes bytes = good_bytes();
  CHECK_FALSE(load_with("", ByteView(bytes).first(1)).has_value());
  CHECK(journal == Names{"D.pre_load", "S.pre_load"});
}

TEST_CASE("Hooks.a_refused_version_runs_no_hook") {
  CHECK_FALSE(load_with("", {}, 0).has_value());
  CHECK(journal.empty());
}

TEST_CASE("Hooks.those_of_an_absent_subsection_do_not_run") {
  // before, S.value, count, list[0]; no subsection at all.
  REQUIRE(load_with("", test::from_hex("11 01 01 09")).has_value());
  CHECK(journal == Names{"D.pre_load", "S.pre_load", "S.post_load(7)", "D.post_load(2)"});
}
