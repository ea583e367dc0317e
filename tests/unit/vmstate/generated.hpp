// SPDX-License-Identifier: Apache-2.0
//
// Tables made from a seed, over objects that are plain memory: for the property test and the fuzz target. Every shape
// that can be made at run time is in them; the same seed makes the same table.
//
// A table's object begins with a control byte, which its predicates and `needed` read. Names have one length, so that
// none is the prefix of another.
#pragma once

#include "vmstate/engine.hpp"
#include "vmstate/runtime.hpp"
#include "vmstate/storage.hpp"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <random>
#include <string>
#include <vector>

namespace migrationd::vmstate::test {

using Words = std::vector<std::uint64_t>;
using ElementList = std::list<Words>;

// --- what lies behind a row's context ---------------------------------------------------------------------
struct SlotPlan {
  std::size_t targets = 0;  // offset of target 0
  std::size_t stride = 0;
  std::uint32_t nulls = 0;  // bit n: slot n is null
};

inline ElementList& list_at(void* member) {
  ElementList* list{};
  std::memcpy(&list, member, sizeof list);
  return *list;
}

inline constexpr SequenceOperations generated_list{
    [](const Field&, const void* member) { return list_at(const_cast<void*>(member)).size(); },
    [](const Field&, void* member, const ElementCall& call) -> Result<void> {
      for (Words& element : list_at(member)) MD_CHECK(call(element.data()));
      return {};
    },
    [](const Field&, void* member) { list_at(member).clear(); },
    [](const Field& row, void* member, const ElementCall& fill) {
      return fill(list_at(member).emplace_back(row.stride / sizeof(std::uint64_t)).data());
    },
};

inline constexpr ViewOperations generated_view{
    [](const Field& row, void* object, const ElementCall& call) {
      // The view is a part of its owner here.
      return call(static_cast<std::byte*>(object) + reinterpret_cast<std::uintptr_t>(row.context));
    },
};

inline bool control_bit(const void* object, unsigned bit) {
  return (std::to_integer<unsigned>(*static_cast<const std::byte*>(object)) >> bit & 1U) != 0;
}

// --- the maker --------------------------------------------------------------------------------------------
class TableMaker {
 public:
  explicit TableMaker(std::uint64_t seed) : random_(seed) {}

  const Description& make() { return description(0, false); }
  std::mt19937_64& random() { return random_; }

 private:
  // The object a table and its subsections describe.
  struct Space {
    std::uint64_t owner = 0;
    std::size_t used = 8;  // the control byte
    std::size_t take(std::size_t bytes) {
      const std::size_t at = used;
      used += (bytes + 7) / 8 * 8;
      return at;
    }
  };

  std::uint32_t pick(std::uint32_t below) { return static_cast<std::uint32_t>(random_() % below); }
  std::string_view name(char kind) {
    return names_.emplace_back(std::string(1, kind) + std::to_string(100000 + names_.size()));
  }

  // `plain`: one version and no predicates, as the elements of lists and views need, and nothing to be freed.
  Description& description(unsigned depth, bool plain) {
    Description& table = tables_.emplace_back();
    Space space{next_owner_++};
    table.name = name('d');
    table.version = plain ? 0 : pick(4);
    table.minimum_version = plain ? 0 : pick(table.version + 1);
    std::vector<Description*> all{&table};
    rows(table, space, depth, plain, true);
    if (!plain) subsections(table, space, depth, all);
    for (Description* one : all) {
      one->owner = space.owner;
      one->object_bytes = space.used;
    }
    return table;
  }

  void subsections(Description& table, Space& space, unsigned depth, std::vector<Description*>& all) {
    const std::uint32_t number = depth > 2 ? 0 : pick(3);
    auto& parts = parts_.emplace_back();
    for (std::uint32_t i = 0; i < number; ++i) {
      Description& part = tables_.emplace_back();
      names_.push_back(std::string(table.name) + "/" + std::to_string(i));
      part.name = names_.back();
      part.version = pick(3);
      if (i == 0) part.needed = [](const void* object) { return control_bit(object, 2); };
      rows(part, space, depth + 1, false, false);
      all.push_back(&part);
      if (pick(3) == 0) subsections(part, space, depth + 2, all);
      parts.push_back(&part);
    }
    table.parts = parts;
  }

  void rows(Description& table, Space& space, unsigned depth, bool plain, bool with_control) {
    auto& rows = rows_.emplace_back();
    if (with_control) rows.push_back(field_at(name('c'), space.owner, codec::u8, 0));
    const std::uint32_t number = 1 + pick(depth == 0 ? 8 : 4);
    for (std::uint32_t i = 0; i < number; ++i) row(rows, table, space, depth, plain);
    // What follows a struct with subsections must not look like one of them.
    rows.push_back(unused_at(space.owner, 1 + pick(3)));
    table.rows = rows;
  }

  void row(std::vector<Field>& rows, const Description& table, Space& space, unsigned depth, bool plain) {
    const std::size_t first = rows.size();
    any_shape(rows, space, depth, plain);
    if (plain) return;
    // A count goes with its array: both get the same fate.
    const std::uint32_t since = pick(table.version + 1);
    const std::uint32_t fate = pick(6);
    for (std::size_t i = first; i < rows.size(); ++i) {
      const bool reads_as_version =
          rows[i].shape->kind == ShapeKind::sequence || rows[i].shape->kind == ShapeKind::view;
      if (fate == 0 && !reads_as_version) rows[i].version = since;
      if (fate == 1) rows[i].last_version = std::max(table.minimum_version, since);
      if (fate == 2) {
        rows[i].exists = [](const void* object, std::uint32_t) { return control_bit(object, 0); };
        rows[i].has_predicate = true;
      }
      if (fate == 3) {
        rows[i].exists = [](const void* object, std::uint32_t) { return !control_bit(object, 1); };
        rows[i].has_predicate = true;
      }
    }
  }

  const Codec& scalar() {
    static const Codec* const all[] = {
        &codec::boolean,   &codec::i8,        &codec::i16,       &codec::i32,       &codec::i64,   &codec::u8,
        &codec::u16,       &codec::u32,       &codec::u64,       &codec::binary64,  &codec::timer, &codec::u8_equal,
        &codec::u16_equal, &codec::i32_equal, &codec::u32_equal, &codec::u64_equal, &codec::i32_le};
    return *all[pick(std::size(all))];
  }
  // One that takes any value.
  const Codec& free_scalar() {
    static const Codec* const all[] = {&codec::boolean, &codec::i16, &codec::u8, &codec::u32, &codec::u64};
    return *all[pick(std::size(all))];
  }

  // Puts the count's row in front, and makes `array` counted by it.
  Field counted(std::vector<Field>& rows, Space& space, const Field& array) {
    static const CountType types[] = {CountType::u8, CountType::u16, CountType::u32, CountType::i32};
    static const Codec* const codecs[] = {&codec::u8, &codec::u16, &codec::u32, &codec::i32};
    const std::uint32_t kind = pick(4);
    const std::size_t at = space.take(8);
    rows.push_back(field_at(name('n'), space.owner, *codecs[kind], at));
    return counted_by(array, types[kind], at);
  }

  Field on_heap(Field array, Space& space) {
    array.offset = space.take(sizeof(void*));
    array.member = member_id_at(array.offset);
    array.storage = &heap_storage;
    array.is_outside = true;
    array.loader_allocates = true;
    return array;
  }

  void any_shape(std::vector<Field>& rows, Space& space, unsigned depth, bool plain) {
    switch (pick(plain ? 4 : depth > 2 ? 8 : 13)) {
      case 0:
        return one(rows, space, plain ? free_scalar() : scalar(), 1);
      case 1:
        return one(rows, space, plain ? free_scalar() : scalar(), 1 + pick(5));
      case 2:
        return buffers(rows, space, plain);
      case 3:
        return bitmaps(rows, space, plain);
      case 4: {
        Field array = field_at(name('f'), space.owner, free_scalar(), 0, 1 + pick(6));
        if (pick(2) == 0) {
          array.offset = space.take(array.stride * array.capacity);
          array.member = member_id_at(array.offset);
        } else {
          array = on_heap(array, space);
        }
        array = counted(rows, space, array);
        if (pick(3) == 0 && array.capacity >= 2) array.count_factor = 2;
        return rows.push_back(array);
      }
      case 5:
        return slots(rows, space);
      case 6:
        return part(rows, space);
      case 7:
        return one(rows, space, free_scalar(), 300);
      case 8:
        return list(rows, space);
      case 9:
        return view(rows, space);
      default:
        return structs(rows, space, depth);
    }
  }

  void one(std::vector<Field>& rows, Space& space, const Codec& codec, std::uint32_t elements) {
    rows.push_back(field_at(name('f'), space.owner, codec, space.take(codec.wire_bytes * elements), elements));
  }

  void buffers(std::vector<Field>& rows, Space& space, bool plain) {
    const std::uint32_t bytes = 1 + pick(20);
    Field buffer = buffer_at(name('b'), space.owner, space.take(bytes), bytes);
    if (pick(2) == 0) return rows.push_back(buffer);
    buffer.count_is_bytes = true;
    buffer.stride = 1;
    buffer.capacity = bytes;
    buffer.bytes = 0;
    if (!plain && pick(2) == 0) buffer = on_heap(buffer, space);
    rows.push_back(counted(rows, space, buffer));
  }

  void bitmaps(std::vector<Field>& rows, Space& space, bool plain) {
    const std::uint32_t bits = 1 + pick(200);
    Field map = row_at(name('m'), space.owner, space.take(bitmap_words(bits) * 8), 8, 1);
    map.codec = &codec::bitmap;
    map.is_bitmap = true;
    map.bytes = bits;
    if (pick(2) == 0) return rows.push_back(map);
    map.bytes = 0;
    map.capacity = bits;
    if (!plain && pick(2) == 0) map = on_heap(map, space);
    rows.push_back(counted(rows, space, map));
  }

  void part(std::vector<Field>& rows, Space& space) {
    const Codec& codec = free_scalar();
    const std::uint32_t all = 2 + pick(5);
    const std::uint32_t start = pick(all);
    Field array = field_at(name('p'), space.owner, codec, space.take(codec.wire_bytes * all), all - start);
    array.start = start * codec.wire_bytes;
    rows.push_back(array);
  }

  void slots(std::vector<Field>& rows, Space& space) {
    const Codec& codec = free_scalar();
    const std::uint32_t number = 1 + pick(6);
    Field array = row_at(name('s'), space.owner, space.take(number * sizeof(void*)), sizeof(void*), number);
    array.codec = &codec;
    array.shape = &shape::pointers;
    array.slot = &pointer_storage;
    SlotPlan& plan = plans_.emplace_back();
    plan.stride = codec.wire_bytes;
    plan.targets = space.take(number * plan.stride);
    plan.nulls = pick(64);
    array.context = &plan;
    rows.push_back(array);
  }

  void list(std::vector<Field>& rows, Space& space) {
    const Description& child = description(3, true);
    Field row = row_at(name('l'), space.owner, space.take(sizeof(void*)), child.object_bytes, 1 + pick(5));
    row.nested = &child;
    row.is_nested = true;
    row.shape = &shape::sequence;
    row.sequence = &generated_list;
    row.type_name = pick(2) == 0 ? "qtailq" : "qlist";
    rows.push_back(row);
  }

  void view(std::vector<Field>& rows, Space& space) {
    const Description& child = description(3, true);
    Field row{};
    row.name = name('v');
    row.owner = space.owner;
    row.has_operations = true;
    row.nested = &child;
    row.is_nested = true;
    row.shape = &shape::view;
    row.view = &generated_view;
    row.type_name = "tmp";
    row.context = reinterpret_cast<const void*>(static_cast<std::uintptr_t>(space.take(child.object_bytes)));
    rows.push_back(row);
  }

  void structs(std::vector<Field>& rows, Space& space, unsigned depth) {
    const Description& child = description(depth + 1, false);
    const std::uint32_t elements = 1 + pick(3);
    Field array = structure_at(name('t'), space.owner, child, space.take(child.object_bytes * elements),
                               child.object_bytes, elements);
    if (pick(3) == 0) {
      array.is_versioned = true;
      array.struct_version = child.minimum_version + pick(child.version - child.minimum_version + 1);
    }
    rows.push_back(pick(2) == 0 ? counted(rows, space, array) : array);
  }

  std::mt19937_64 random_;
  std::uint64_t next_owner_ = 1;
  std::deque<std::string> names_;
  std::deque<Description> tables_;
  std::deque<std::vector<Field>> rows_;
  std::deque<std::vector<const Description*>> parts_;
  std::deque<SlotPlan> plans_;
};

// --- objects ----------------------------------------------------------------------------------------------
// An object of a generated table.
class GeneratedObject {
 public:
  explicit GeneratedObject(const Description& table) : table_(table), memory_(table.object_bytes / 8) {
    construct(table_, address());
  }
  ~GeneratedObject() { release(table_, address()); }
  GeneratedObject(const GeneratedObject&) = delete;
  GeneratedObject& operator=(const GeneratedObject&) = delete;

  std::byte* address() { return reinterpret_cast<std::byte*>(memory_.data()); }
  void fill(std::mt19937_64& random) { fill(table_, address(), random); }
  // Takes over what both sides must have: the values that are compared.
  void agree_with(GeneratedObject& other) { agree(table_, address(), other.address()); }

 private:
  template <class Call>
  static void each_row(const Description& table, const Call& call) {
    for (const Field& row : table.rows) call(row);
    for (const Description* part : table.parts) each_row(*part, call);
  }

  // The structs that lie in the object.
  template <class Call>
  static void each_struct(const Field& row, std::byte* object, const Call& call) {
    if (row.nested == nullptr || row.shape->kind == ShapeKind::sequence) return;
    if (row.shape->kind == ShapeKind::view) {
      return call(*row.nested, object + reinterpret_cast<std::uintptr_t>(row.context));
    }
    for (std::uint32_t i = 0; i < row.capacity; ++i) call(*row.nested, object + row.offset + i * row.stride);
  }

  static void construct(const Description& table, std::byte* object) {
    each_row(table, [object](const Field& row) {
      if (row.shape->kind == ShapeKind::sequence) {
        auto* const list = new ElementList;
        std::memcpy(object + row.offset, &list, sizeof(void*));
      }
      if (row.shape->kind == ShapeKind::pointers) {
        const auto& plan = *static_cast<const SlotPlan*>(row.context);
        for (std::uint32_t i = 0; i < row.capacity; ++i) {
          void* const target = (plan.nulls >> i & 1U) != 0 ? nullptr : object + plan.targets + i * plan.stride;
          std::memcpy(object + row.offset + i * sizeof(void*), &target, sizeof target);
        }
      }
      each_struct(row, object, [](const Description& child, std::byte* at) { construct(child, at); });
    });
  }

  static void release(const Description& table, std::byte* object) {
    each_row(table, [object](const Field& row) {
      if (row.shape->kind == ShapeKind::sequence) delete &list_at(object + row.offset);
      if (row.storage == &heap_storage) {
        void* memory{};
        std::memcpy(&memory, object + row.offset, sizeof memory);
        std::free(memory);
      }
      each_struct(row, object, [](const Description& child, std::byte* at) { release(child, at); });
    });
  }

  static void agree(const Description& table, std::byte* object, std::byte* other) {
    each_row(table, [&](const Field& row) {
      const bool compared =
          row.codec != nullptr && (row.codec->name.ends_with(" equal") || row.codec == &codec::i32_le);
      if (compared) std::memcpy(object + row.offset, other + row.offset, row.stride * row.capacity);
      each_struct(row, object,
                  [&](const Description& child, std::byte* at) { agree(child, at, other + (at - object)); });
    });
  }

  static void put(const Codec& codec, std::byte* at, std::mt19937_64& random) {
    const std::uint64_t value = random();
    std::memcpy(at, &value, codec.wire_bytes);
    if (&codec == &codec::boolean) *at &= std::byte{1};
    if (&codec == &codec::i32_le) at[3] &= std::byte{0x7f};
  }

  static std::uint64_t choose_count(const Field& row, std::byte* object, std::mt19937_64& random) {
    if (!row.is_counted) return row.capacity;
    const std::uint64_t count = random() % (row.capacity / row.count_factor + 1);
    const std::size_t size = row.count_type == CountType::u8 ? 1 : row.count_type == CountType::u16 ? 2 : 4;
    std::memcpy(object + row.count_offset, &count, size);
    return count * row.count_factor;
  }

  static void fill_row(const Field& row, std::byte* object, std::mt19937_64& random) {
    if (row.shape->kind == ShapeKind::sequence) {
      ElementList& list = list_at(object + row.offset);
      list.clear();
      for (std::uint64_t i = random() % (row.capacity + 1); i > 0; --i) {
        auto& element = list.emplace_back(row.stride / 8);
        fill(*row.nested, reinterpret_cast<std::byte*>(element.data()), random);
      }
      return;
    }
    if (row.shape->kind == ShapeKind::pointers) {
      const auto& plan = *static_cast<const SlotPlan*>(row.context);
      for (std::uint32_t i = 0; i < row.capacity; ++i) put(*row.codec, object + plan.targets + i * plan.stride, random);
      return;
    }
    each_struct(row, object, [&](const Description& child, std::byte* at) { fill(child, at, random); });
    const std::uint64_t count = choose_count(row, object, random);
    if (row.nested != nullptr || row.offset == no_offset) return;
    std::byte* at = object + row.offset;
    const bool is_bytes = row.codec == &codec::buffer;
    std::uint64_t bytes = is_bytes ? (row.count_is_bytes ? count : row.bytes) : count * row.stride;
    if (row.is_bitmap) bytes = bitmap_words(row.is_counted ? count : row.bytes) * 8;
    if (row.storage != nullptr) {
      void* memory = bytes != 0 ? std::calloc(1, bytes) : nullptr;
      std::memcpy(at, &memory, sizeof memory);
      at = static_cast<std::byte*>(memory);
    }
    if (is_bytes || row.is_bitmap) {
      for (std::uint64_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>(random() & 0xff);
    } else {
      for (std::uint64_t i = 0; i < count; ++i) put(*row.codec, at + row.start + i * row.stride, random);
    }
  }

  static void fill(const Description& table, std::byte* object, std::mt19937_64& random) {
    each_row(table, [&](const Field& row) { fill_row(row, object, random); });
  }

  const Description& table_;
  Words memory_;
};

}  // namespace migrationd::vmstate::test
