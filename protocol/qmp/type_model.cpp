// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/type_model.hpp"

#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/events.hpp"
#include "protocol/qmp/parameter_rows.hpp"

#include <map>

namespace migrationd::qmp {

namespace {

using Kind = TypeModel::Kind;

template <class T>
inline constexpr bool is_prebuilt = false;
template <class T>
inline constexpr bool is_prebuilt<Prebuilt<T>> = true;

template <class T>
struct Inner {
  using Type = T;
};
template <class T>
struct Inner<std::optional<T>> {
  using Type = T;
};
template <class T>
struct Inner<Prebuilt<T>> {
  using Type = T;
};

// Walks types, each once; names are the identity, for every type has its own.
class Builder {
 public:
  TypeModel take() && { return std::move(model_); }

  template <class... Rows>
  void commands(CommandTable<Rows...>) {
    (command<Rows>(), ...);
  }
  template <class... Rows>
  void events(EventTable<Rows...>) {
    (event<Rows>(), ...);
  }

 private:
  template <class C>
  void command() {
    const auto arguments = type<typename C::Args>();
    const auto result = type<typename C::Result>();
    model_.commands.push_back({find_command(C::name), arguments, result});
  }
  template <class E>
  void event() {
    if constexpr (std::is_base_of_v<Empty, E>) {
      model_.events.push_back({E::name, E::text, type<Empty>()});
    } else {
      model_.events.push_back({E::name, E::text, type<E>()});
    }
  }

  template <class T>
  std::size_t type() {
    if constexpr (is_optional<T> || is_prebuilt<T>) return type<typename Inner<T>::Type>();
    if constexpr (std::is_same_v<T, bool>) return builtin("bool", "boolean");
    if constexpr (std::is_same_v<T, double>) return builtin("number", "number");
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) return builtin("int", "int");
    if constexpr (std::is_same_v<T, std::string>) return builtin("str", "string");
    if constexpr (std::is_same_v<T, Any>) return builtin("any", "value");
    if constexpr (std::is_same_v<T, Unread>) return type<Empty>();
    if constexpr (std::is_same_v<T, StrOrNull>) return str_or_null();
    if constexpr (std::is_same_v<T, NoBlockDevices> || std::is_same_v<T, NoBlockNodes>) return fragment(T::fragment);
    if constexpr (std::is_same_v<T, ParameterPatch>) return parameters("migrate-set-parameters-arg", true);
    if constexpr (std::is_same_v<T, MigrationParameters>) return parameters("MigrationParameters", false);
    if constexpr (is_vector<T>) return array(type<typename T::value_type>());
    if constexpr (NamedEnum<T>) return enumeration<T>();
    if constexpr (Struct<T>) return object<T>();
  }

  // A new type of that name; {index, true}, or the one that is there.
  std::pair<std::size_t, bool> make(Kind kind, std::string name) {
    const auto [at, fresh] = index_.emplace(std::move(name), model_.types.size());
    if (fresh) {
      auto& made = model_.types.emplace_back();
      made.kind = kind;
      made.name = at->first;
    }
    return {at->second, fresh};
  }

  std::size_t builtin(std::string_view name, std::string_view json_type) {
    const auto [index, fresh] = make(Kind::builtin, std::string(name));
    if (fresh) model_.types[index].json_type = json_type;
    return index;
  }

  std::size_t array(std::size_t element) {
    const auto [index, fresh] = make(Kind::array, "[" + model_.types[element].name + "]");
    if (fresh) model_.types[index].element = element;
    return index;
  }

  std::size_t fragment(std::string_view name) { return make(Kind::fragment, std::string(name)).first; }

  std::size_t str_or_null() {
    const auto [index, fresh] = make(Kind::alternate, "StrOrNull");
    if (fresh) {
      const auto text = builtin("str", "string");
      const auto null = builtin("null", "null");
      model_.types[index].members = {{"", text, false, Stability::stable, ""},
                                     {"", null, false, Stability::stable, ""}};
    }
    return index;
  }

  template <NamedEnum E>
  std::size_t enumeration() {
    const auto [index, fresh] = make(Kind::enumeration, std::string(name_table<E>.type_name));
    if (fresh) model_.types[index].values.assign(name_table<E>.names.begin(), name_table<E>.names.end());
    return index;
  }

  template <Struct T>
  std::size_t object() {
    const auto [index, fresh] = make(Kind::object, std::string(T::type_name));
    if (!fresh) return index;
    std::vector<TypeModel::Member> members;
    std::apply([&](const auto&... member) { (members.push_back(member_of(member)), ...); }, T::members());
    model_.types[index].members = std::move(members);
    if constexpr (Union<T>) add_variants<T>(index);
    return index;
  }

  template <class Owner, class T>
  TypeModel::Member member_of(const Member<Owner, T>& member) {
    return {member.name, type<T>(), is_optional<T>, member.stability, member.text};
  }

  template <Union T>
  void add_variants(std::size_t index) {
    std::vector<TypeModel::Variant> variants;
    using Tag = std::remove_cvref_t<decltype(std::declval<T>().*T::tag())>;
    for (const auto& value : name_table<Tag>.names) variants.push_back({value.text, type<Empty>()});
    const auto set = [&](const auto& row) {
      variants[static_cast<std::size_t>(row.value)].type = type<typename std::remove_cvref_t<decltype(row)>::Type>();
    };
    std::apply([&](const auto&... row) { (set(row), ...); }, T::branches());
    std::string_view tag;
    const auto find_tag = [&](const auto& member) {
      if constexpr (std::is_same_v<decltype(member.pointer), decltype(T::tag())>) {
        if (member.pointer == T::tag()) tag = member.name;
      }
    };
    std::apply([&](const auto&... member) { (find_tag(member), ...); }, T::members());
    model_.types[index].tag = tag;
    model_.types[index].variants = std::move(variants);
  }

  // The rows of the parameter table as optional members; strings may be null where they are set.
  std::size_t parameters(std::string name, bool as_arguments) {
    const auto [index, fresh] = make(Kind::object, std::move(name));
    if (!fresh) return index;
    std::vector<TypeModel::Member> members;
    all_parameters([&](const auto& row, std::size_t) {
      using T = typename std::remove_cvref_t<decltype(row)>::Type;
      const bool nullable = std::is_same_v<T, std::string> && as_arguments;
      const auto member_type = nullable ? str_or_null() : type<T>();
      members.push_back({row.name, member_type, true, row.stability, row.text});
      return true;
    });
    model_.types[index].members = std::move(members);
    return index;
  }

  TypeModel model_;
  std::map<std::string, std::size_t> index_;
};

}  // namespace

const TypeModel& TypeModel::get() {
  static const TypeModel model = [] {
    Builder builder;
    builder.commands(AllCommands{});
    builder.events(AllEvents{});
    return std::move(builder).take();
  }();
  return model;
}

}  // namespace migrationd::qmp
