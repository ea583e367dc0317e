// SPDX-License-Identifier: Apache-2.0
//
// The schema against QEMU 10.0.13's own (tests/fixtures/qmp, cut from a recorded query-qmp-schema answer): for each
// command and event of ours that QEMU has, names, types and optionality must be equal all the way down. Type names are
// masked on both sides, so shapes are compared. What differs on purpose stands in the list of exceptions with its
// reason; an exception that no longer occurs is an error too.
#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/reference.hpp"
#include "tests/unit/catch.hpp"

#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

using namespace migrationd;
using namespace migrationd::qmp;

namespace {

using Index = std::map<std::string, OrderedJson>;

Index index_of(const OrderedJson& schema) {
  Index out;
  for (const auto& entry : schema) {
    const bool fresh = out.emplace(entry.at("name").get<std::string>(), entry).second;
    INFO(entry.at("name"));
    REQUIRE(fresh);
  }
  return out;
}

OrderedJson fixture() {
  const char* folder = std::getenv("MIGRATIOND_FIXTURES");
  REQUIRE(folder != nullptr);
  std::ifstream file(std::string(folder) + "/qmp/schema-10.0.13.json");
  REQUIRE(file.good());
  return OrderedJson::parse(file);
}

const std::set<std::string> exceptions = {
    // Ours; the names carry the downstream prefix that QMP prescribes, so no client can be misled.
    "migrate-set-capabilities.capabilities[].capability: value __org.migrationd_skip-holes is ours alone",
    "migrate-set-capabilities.capabilities[].capability: value __org.migrationd_instant-resume is ours alone",
    "migrate-set-parameters: member __org.migrationd_postcopy-background is ours alone",
    "migrate-set-parameters: member __org.migrationd_postcopy-page-sizes is ours alone",
    "migrate-set-parameters: member __org.migrationd_rdma-queue-pairs is ours alone",
    "migrate-set-parameters: member __org.migrationd_working-set is ours alone",
    "query-migrate(): member __org.migrationd_postcopy-latency-dist is ours alone",
    "query-migrate(): member __org.migrationd_rdma is ours alone",
    "query-migrate-parameters(): member __org.migrationd_postcopy-background is ours alone",
    "query-migrate-parameters(): member __org.migrationd_postcopy-page-sizes is ours alone",
    "query-migrate-parameters(): member __org.migrationd_rdma-queue-pairs is ours alone",
    "query-migrate-parameters(): member __org.migrationd_working-set is ours alone",
    // No savevm here, so nothing about its block nodes to tell.
    "human-monitor-command: feature savevm-monitor-nodes is QEMU's alone",
};

// Members of object types that are not built in: accepted unread and the type refused by name.
bool is_foreign_object(const std::string& where) { return where.starts_with("object-add{"); }

class Comparer {
 public:
  Comparer(const Index& ours, const Index& theirs) : ours_(ours), theirs_(theirs) {}

  void types(const std::string& where, const std::string& our_name, const std::string& their_name) {
    if (!seen_.insert({our_name, their_name}).second) return;
    REQUIRE(ours_.contains(our_name));
    REQUIRE(theirs_.contains(their_name));
    const auto& our = ours_.at(our_name);
    const auto& their = theirs_.at(their_name);
    const auto meta = their.at("meta-type").get<std::string>();
    if (our.at("meta-type") != meta) return differ(where, "is a " + our.at("meta-type").get<std::string>());
    if (meta == "builtin" && our.at("json-type") != their.at("json-type")) differ(where, "builtin " + our_name);
    if (meta == "array") types(where + "[]", our.at("element-type"), their.at("element-type"));
    if (meta == "enum") values(where, our, their);
    if (meta == "alternate") alternatives(where, our, their);
    if (meta == "object") object(where, our, their);
  }

  void types(const std::string& where, const OrderedJson& our_name, const OrderedJson& their_name) {
    types(where, our_name.get<std::string>(), their_name.get<std::string>());
  }

  void features(const std::string& where, const OrderedJson& our, const OrderedJson& their) {
    const auto set_of = [](const OrderedJson& of) {
      std::set<std::string> out;
      for (const auto& feature : of.value("features", OrderedJson::array())) out.insert(feature.get<std::string>());
      return out;
    };
    both(where + ": feature ", set_of(our), set_of(their));
  }

  void differ(const std::string& where, const std::string& what) { differences.insert(where + ": " + what); }

  std::set<std::string> differences;

 private:
  void both(const std::string& prefix, const std::set<std::string>& our, const std::set<std::string>& their) {
    for (const auto& name : our)
      if (!their.contains(name)) differences.insert(prefix + name + " is ours alone");
    for (const auto& name : their)
      if (!our.contains(name)) differences.insert(prefix + name + " is QEMU's alone");
  }

  void values(const std::string& where, const OrderedJson& our, const OrderedJson& their) {
    const auto set_of = [](const OrderedJson& of, const char* member) {
      std::set<std::string> out;
      for (const auto& value : of.at(member)) out.insert(value.is_string() ? value.get<std::string>() : value.dump());
      return out;
    };
    both(where + ": value ", set_of(our, "values"), set_of(their, "values"));
    // Features of the values, where both have the value.
    for (const auto& member : their.at("members"))
      if (member.contains("features") && !set_of(our, "members").contains(member.dump()))
        differ(where, "features of value " + member.at("name").get<std::string>());
  }

  void alternatives(const std::string& where, const OrderedJson& our, const OrderedJson& their) {
    if (our.at("members").size() != their.at("members").size()) return differ(where, "number of alternatives");
    for (std::size_t i = 0; i < their.at("members").size(); ++i)
      types(where + "|", our.at("members")[i].at("type"), their.at("members")[i].at("type"));
  }

  void object(const std::string& where, const OrderedJson& our, const OrderedJson& their) {
    const auto by_name = [](const OrderedJson& of, const char* list, const char* key) {
      std::map<std::string, OrderedJson> out;
      for (const auto& member : of.value(list, OrderedJson::array())) out[member.at(key).get<std::string>()] = member;
      return out;
    };
    const auto names = [](const auto& map) {
      std::set<std::string> out;
      for (const auto& item : map) out.insert(item.first);
      return out;
    };
    const auto our_members = by_name(our, "members", "name");
    const auto their_members = by_name(their, "members", "name");
    both(where + ": member ", names(our_members), names(their_members));
    for (const auto& [name, member] : their_members) {
      if (!our_members.contains(name)) continue;
      const auto& mine = our_members.at(name);
      const auto at = where + "." + name;
      if (mine.contains("default") != member.contains("default")) differ(at, "optionality");
      features(at, mine, member);
      types(at, mine.at("type"), member.at("type"));
    }
    if (our.value("tag", "") != their.value("tag", "")) differ(where, "tag");
    const auto our_variants = by_name(our, "variants", "case");
    const auto their_variants = by_name(their, "variants", "case");
    both(where + ": variant ", names(our_variants), names(their_variants));
    for (const auto& [name, variant] : their_variants)
      if (our_variants.contains(name)) variants(where + "{" + name + "}", our_variants.at(name), variant);
  }

  void variants(const std::string& where, const OrderedJson& our, const OrderedJson& their) {
    if (is_foreign_object(where) && our.at("type") == "0") return;
    types(where, our.at("type"), their.at("type"));
  }

  const Index& ours_;
  const Index& theirs_;
  std::set<std::pair<std::string, std::string>> seen_;
};

}  // namespace

TEST_CASE("Schema.every_command_and_event_has_the_shape_of_qemus") {
  const auto our = index_of(query_qmp_schema().json);
  const auto their = index_of(fixture());
  Comparer comparer(our, their);
  int compared = 0;
  for (const auto& [name, entry] : our) {
    const auto meta = entry.at("meta-type").get<std::string>();
    if (meta != "command" && meta != "event") continue;
    if (name.starts_with("__org.migrationd_") || name == "migrate_set_capability" || name == "migrate_set_parameter")
      continue;
    INFO(name);
    REQUIRE(their.contains(name));
    const auto& real = their.at(name);
    ++compared;
    CHECK(entry.value("allow-oob", false) == real.value("allow-oob", false));
    comparer.features(name, entry, real);
    comparer.types(name, entry.at("arg-type"), real.at("arg-type"));
    if (meta == "command") comparer.types(name + "()", entry.at("ret-type"), real.at("ret-type"));
  }
  CHECK(compared == static_cast<int>(command_table().size()) - 5 + 7);
  CHECK(comparer.differences == exceptions);
}

TEST_CASE("Schema.every_reference_can_be_resolved") {
  const auto our = index_of(query_qmp_schema().json);
  const auto known = [&](const OrderedJson& name) {
    INFO(name);
    CHECK(our.contains(name.get<std::string>()));
  };
  for (const auto& [name, entry] : our) {
    INFO(name);
    for (const auto* key : {"arg-type", "ret-type", "element-type"})
      if (entry.contains(key)) known(entry.at(key));
    for (const auto* key : {"members", "variants"})
      for (const auto& member : entry.value(key, OrderedJson::array()))
        if (member.contains("type")) known(member.at("type"));
  }
}

TEST_CASE("Schema.has_the_paths_that_libvirt_looks_up") {
  const auto our = index_of(query_qmp_schema().json);
  const auto has_member = [&](const char* command, const char* side, const char* member) {
    const auto& type = our.at(our.at(command).at(side).get<std::string>());
    for (const auto& row : type.at("members"))
      if (row.at("name") == member) return true;
    return false;
  };
  CHECK(has_member("query-migrate", "ret-type", "blocked-reasons"));
  CHECK(has_member("migrate-incoming", "arg-type", "exit-on-error"));
  CHECK(our.contains("blockdev-set-active"));
}

TEST_CASE("Schema.query_commands_lists_the_table") {
  const auto& names = query_commands().json;
  REQUIRE(names.size() == command_table().size());
  CHECK(names[0] == OrderedJson({{"name", "qmp_capabilities"}}));
  CHECK(find_command("migrate_cancel") != nullptr);
  CHECK(find_command("migrate-cancel") == nullptr);
  CHECK(find_command("migrate-pause")->allow_oob);
}

TEST_CASE("Reference.describes_every_command_parameter_and_capability") {
  const auto page = make_reference();
  for (const auto& row : command_table()) {
    INFO(row.name);
    CHECK(page.find("### " + std::string(row.name) + "\n") != std::string::npos);
  }
  for (const auto& row : parameter_table())
    CHECK(page.find("| `" + std::string(row.name) + "` |") != std::string::npos);
  for (const auto& row : capability_table())
    CHECK(page.find("| `" + std::string(to_name(row.capability)) + "` |") != std::string::npos);
}
